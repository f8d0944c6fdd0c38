package hub

import "testing"

func TestElsewherePassesPanicsOn(t *testing.T) {
	ran := false
	if elsewhere(func() { ran = true }); !ran {
		t.Error("not run")
	}
	defer func() {
		if p := recover(); p != "broken" {
			t.Errorf("recovered %v", p)
		}
	}()
	elsewhere(func() { panic("broken") })
	t.Error("the panic is lost")
}
