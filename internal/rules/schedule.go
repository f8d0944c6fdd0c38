package rules

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

const (
	day  = 24 * 60 // minutes
	week = 7 * day
)

var dayNames = []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"} // as time.Weekday counts

// schedule tells whether a moment is within times that come again every week.
type schedule struct {
	zone    *time.Location
	open    [week]bool // by minute, from Sunday 00:00
	changes []int      // the minutes at which open changes, ascending
	last    atomic.Pointer[span]
}

// span is a stretch of time over which a schedule does not change.
type span struct {
	from, until int64 // Unix seconds
	open        bool
}

// newSchedule compiles times; nil when there are none.
func newSchedule(times []Time, zone string) (*schedule, error) {
	if times == nil {
		if zone != "" {
			return nil, fieldErrorf("time_zone", "there are no times to read in it")
		}
		return nil, nil
	}
	if len(times) == 0 {
		return nil, fieldErrorf("times", "empty list")
	}
	s := new(schedule)
	var err error
	if s.zone, err = loadZone(zone); err != nil {
		return nil, &FieldError{"time_zone", err}
	}
	for _, t := range times {
		if err := s.add(t); err != nil {
			return nil, &FieldError{"times", err}
		}
	}
	for m := range s.open {
		if s.open[m] != s.open[(m+week-1)%week] {
			s.changes = append(s.changes, m)
		}
	}
	return s, nil
}

func loadZone(name string) (*time.Location, error) {
	switch name {
	case "":
		return time.UTC, nil
	case "Local":
		return nil, errors.New("it is another zone on another host, so Local is not taken; name the zone")
	}
	return time.LoadLocation(name)
}

// add opens the minutes of t.
func (s *schedule) add(t Time) error {
	if t.Weekdays == nil && t.Hours == nil {
		return errors.New("neither weekdays nor hours")
	}
	days, err := parseWeekdays(t.Weekdays)
	if err != nil {
		return err
	}
	hours := [][2]int{{0, day}}
	if t.Hours != nil {
		if hours, err = parseHours(t.Hours); err != nil {
			return err
		}
	}
	for d, on := range days {
		for _, h := range hours {
			for m := h[0]; on && m < h[1]; m++ {
				s.open[(d*day+m)%week] = true
			}
		}
	}
	return nil
}

func parseWeekdays(words []string) (days [7]bool, err error) {
	if words == nil {
		return [7]bool{true, true, true, true, true, true, true}, nil
	}
	if len(words) == 0 {
		return days, errors.New("weekdays: empty list")
	}
	for _, w := range words {
		first, last, isRange := strings.Cut(w, "-")
		if !isRange {
			last = first
		}
		i, j := slices.Index(dayNames, first), slices.Index(dayNames, last)
		if i < 0 || j < 0 {
			return days, fmt.Errorf("%q is neither a weekday such as mon nor a range such as mon-fri", w)
		}
		for ; ; i = (i + 1) % 7 {
			days[i] = true
			if i == j {
				break
			}
		}
	}
	return days, nil
}

// parseHours returns windows in minutes of the day on which they begin.
func parseHours(words []string) (hours [][2]int, err error) {
	if len(words) == 0 {
		return nil, errors.New("hours: empty list")
	}
	for _, w := range words {
		first, last, _ := strings.Cut(w, "-")
		from, ok1 := parseClock(first)
		to, ok2 := parseClock(last)
		switch {
		case !ok1 || !ok2 || from == day:
			return nil, fmt.Errorf("%q is not a window such as 08:00-18:00", w)
		case from == to:
			return nil, fmt.Errorf("window %q is empty; for the whole day write 00:00-24:00", w)
		case to < from:
			to += day
		}
		hours = append(hours, [2]int{from, to})
	}
	return hours, nil
}

// parseClock reads 00:00 to 24:00, always with five characters.
func parseClock(s string) (minutes int, ok bool) {
	if len(s) != 5 || s[2] != ':' {
		return 0, false
	}
	for _, i := range []int{0, 1, 3, 4} {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
	}
	h, m := int(s[0]-'0')*10+int(s[1]-'0'), int(s[3]-'0')*10+int(s[4]-'0')
	return h*60 + m, m < 60 && (h < 24 || h == 24 && m == 0)
}

// at reports whether the schedule is open at t, and until when it stays so.
func (s *schedule) at(t time.Time) (open bool, until int64) {
	now := t.Unix()
	if p := s.last.Load(); p != nil && p.from <= now && now < p.until {
		return p.open, p.until
	}
	p := s.span(t)
	s.last.Store(p)
	return p.open, p.until
}

// span looks ahead. Between two changes of the zone's offset the clock on the
// wall runs like any other, so the next change is either one of the schedule or
// one of the offset.
func (s *schedule) span(t time.Time) *span {
	t = t.In(s.zone)
	second := (int(t.Weekday())*day+t.Hour()*60+t.Minute())*60 + t.Second()
	p := &span{from: t.Unix(), until: math.MaxInt64, open: s.open[second/60]}
	if len(s.changes) > 0 {
		i, _ := slices.BinarySearch(s.changes, second/60+1)
		next := s.changes[i%len(s.changes)]
		if i == len(s.changes) {
			next += week
		}
		p.until = p.from + int64(next*60-second)
		if _, end := t.ZoneBounds(); !end.IsZero() {
			p.until = min(p.until, end.Unix())
		}
	}
	return p
}
