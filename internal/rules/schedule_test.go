package rules

import (
	"math"
	"testing"
	"time"
)

func mustSchedule(t *testing.T, zone string, times ...Time) *schedule {
	t.Helper()
	s, err := newSchedule(times, zone)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func moment(t *testing.T, s string) time.Time {
	t.Helper()
	m, err := time.Parse(time.RFC3339, s)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestSchedules(t *testing.T) {
	nights := Time{Weekdays: []string{"fri"}, Hours: []string{"22:00-06:00"}}
	office := Time{Weekdays: []string{"mon-fri"}, Hours: []string{"08:00-18:00"}}
	skipped := Time{Hours: []string{"02:00-03:00"}}
	half := Time{Hours: []string{"02:30-03:30"}}
	for _, tt := range []struct {
		zone  string
		time  Time
		at    string
		open  bool
		until string // empty = for good
	}{
		{"", office, "2026-03-04T07:59:59Z", false, "2026-03-04T08:00:00Z"},
		{"", office, "2026-03-04T08:00:00Z", true, "2026-03-04T18:00:00Z"},
		{"", office, "2026-03-04T17:59:59Z", true, "2026-03-04T18:00:00Z"},
		{"", office, "2026-03-04T18:00:00Z", false, "2026-03-05T08:00:00Z"},
		{"", office, "2026-03-06T18:00:00Z", false, "2026-03-09T08:00:00Z"}, // Friday to Monday
		{"", office, "2026-03-07T12:00:00Z", false, "2026-03-09T08:00:00Z"},

		// Over midnight: the night belongs to the day on which it begins.
		{"", nights, "2026-03-06T21:59:59Z", false, "2026-03-06T22:00:00Z"},
		{"", nights, "2026-03-06T22:00:00Z", true, "2026-03-07T06:00:00Z"},
		{"", nights, "2026-03-07T05:59:59Z", true, "2026-03-07T06:00:00Z"},
		{"", nights, "2026-03-07T06:00:00Z", false, "2026-03-13T22:00:00Z"},
		{"", nights, "2026-03-06T05:00:00Z", false, "2026-03-06T22:00:00Z"}, // Friday's early morning is Thursday's night
		{"", Time{Weekdays: []string{"sat"}, Hours: []string{"22:00-06:00"}}, "2026-03-08T03:00:00Z", true, "2026-03-08T06:00:00Z"},
		{"", Time{Weekdays: []string{"sun"}, Hours: []string{"12:00-24:00"}}, "2026-03-08T23:59:59Z", true, "2026-03-09T00:00:00Z"},
		{"", Time{Hours: []string{"12:00-00:00"}}, "2026-03-08T23:59:59Z", true, "2026-03-09T00:00:00Z"},

		{"", Time{Weekdays: []string{"sat-mon"}}, "2026-03-09T23:59:59Z", true, "2026-03-10T00:00:00Z"},
		{"", Time{Weekdays: []string{"sat-mon"}}, "2026-03-10T00:00:00Z", false, "2026-03-14T00:00:00Z"},
		{"", Time{Weekdays: []string{"wed"}}, "2026-03-04T00:00:00Z", true, "2026-03-05T00:00:00Z"},
		{"", Time{Weekdays: []string{"mon-sun"}}, "2026-03-04T00:00:00Z", true, ""},
		{"", Time{Hours: []string{"00:00-24:00"}}, "2026-03-04T00:00:00Z", true, ""},
		{"", Time{Hours: []string{"08:00-12:00", "12:00-18:00"}}, "2026-03-04T09:00:00Z", true, "2026-03-04T18:00:00Z"},

		// The zone's day, and half hours.
		{"Asia/Kolkata", office, "2026-03-04T02:29:59Z", false, "2026-03-04T02:30:00Z"},
		{"Asia/Kolkata", office, "2026-03-08T20:00:00Z", false, "2026-03-09T02:30:00Z"},
		{"America/Los_Angeles", Time{Weekdays: []string{"wed"}}, "2026-03-05T07:59:59Z", true, "2026-03-05T08:00:00Z"},

		// Europe/Berlin skips 02:00 to 03:00 on 2026-03-29, at 01:00 UTC. The look
		// ahead stops at the change of the offset, and goes on from there.
		{"Europe/Berlin", office, "2026-03-27T07:00:00Z", true, "2026-03-27T17:00:00Z"},
		{"Europe/Berlin", office, "2026-03-27T17:00:00Z", false, "2026-03-29T01:00:00Z"},
		{"Europe/Berlin", office, "2026-03-29T01:00:00Z", false, "2026-03-30T06:00:00Z"},
		{"Europe/Berlin", office, "2026-03-30T06:00:00Z", true, "2026-03-30T16:00:00Z"},
		{"Europe/Berlin", skipped, "2026-03-29T00:59:59Z", false, "2026-03-29T01:00:00Z"},
		{"Europe/Berlin", skipped, "2026-03-29T01:00:00Z", false, "2026-03-30T00:00:00Z"},
		{"Europe/Berlin", half, "2026-03-29T00:59:59Z", false, "2026-03-29T01:00:00Z"},
		{"Europe/Berlin", half, "2026-03-29T01:00:00Z", true, "2026-03-29T01:30:00Z"}, // it is 03:00
		// It repeats 02:00 to 03:00 on 2026-10-25, at 01:00 UTC.
		{"Europe/Berlin", skipped, "2026-10-25T00:00:00Z", true, "2026-10-25T01:00:00Z"},
		{"Europe/Berlin", skipped, "2026-10-25T01:00:00Z", true, "2026-10-25T02:00:00Z"},
		{"Europe/Berlin", half, "2026-10-25T00:45:00Z", true, "2026-10-25T01:00:00Z"},
		{"Europe/Berlin", half, "2026-10-25T01:00:00Z", false, "2026-10-25T01:30:00Z"}, // it is 02:00 again
		{"Europe/Berlin", half, "2026-10-25T01:30:00Z", true, "2026-10-25T02:30:00Z"},
	} {
		s := mustSchedule(t, tt.zone, tt.time)
		until := int64(math.MaxInt64)
		if tt.until != "" {
			until = moment(t, tt.until).Unix()
		}
		open, got := s.at(moment(t, tt.at))
		if open != tt.open || got != until {
			t.Errorf("%s %v at %s: %v until %s, want %v until %s", tt.zone, tt.time, tt.at, open, time.Unix(got, 0).UTC().Format(time.RFC3339), tt.open, tt.until)
		}
	}
}

// Minute by minute through weeks with and without a change of the offset, a
// schedule that looks ahead says what the clock on the wall says.
func TestScheduleLooksAheadRightly(t *testing.T) {
	times := []Time{
		{Weekdays: []string{"mon-fri"}, Hours: []string{"08:00-12:15", "13:00-18:00"}},
		{Weekdays: []string{"sat-sun"}, Hours: []string{"01:30-02:20", "22:00-03:10"}},
	}
	wall := func(m time.Time) bool {
		w, clock := m.Weekday(), m.Hour()*60+m.Minute()
		yesterday := (w + 6) % 7
		weekend := func(d time.Weekday) bool { return d == time.Saturday || d == time.Sunday }
		return !weekend(w) && (clock >= 480 && clock < 735 || clock >= 780 && clock < 1080) ||
			weekend(w) && (clock >= 90 && clock < 140 || clock >= 1320) || weekend(yesterday) && clock < 190
	}
	for _, zone := range []string{"UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"} {
		s := mustSchedule(t, zone, times...)
		for _, first := range []string{"2026-03-05T00:00:00Z", "2026-03-26T00:00:00Z", "2026-10-01T00:00:00Z", "2026-10-22T00:00:00Z", "2026-10-29T00:00:00Z"} {
			begin := moment(t, first)
			for i := range 9 * day {
				m := begin.Add(time.Duration(i) * time.Minute)
				if open, _ := s.at(m); open != wall(m.In(s.zone)) {
					t.Fatalf("%s at %s: %v", zone, m.In(s.zone), open)
				}
			}
		}
	}
}

// Questions out of order, as from several goroutines, get the right answers.
func TestScheduleBackInTime(t *testing.T) {
	s := mustSchedule(t, "", Time{Hours: []string{"08:00-18:00"}})
	for _, at := range []string{"2026-03-04T19:00:00Z", "2026-03-04T09:00:00Z", "2026-03-04T19:00:00Z", "2026-03-03T17:00:00Z", "2026-03-04T07:00:00Z"} {
		m := moment(t, at)
		if open, _ := s.at(m); open != (m.Hour() >= 8 && m.Hour() < 18) {
			t.Errorf("at %s: %v", at, open)
		}
	}
}
