package testpeer

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// plantLeak in the environment makes TestPlantedLeak leave a goroutine behind.
const plantLeak = "TESTPEER_PLANT_LEAK"

func TestMain(m *testing.M) { LeakCheck(m) }

func TestPlantedLeak(*testing.T) {
	if os.Getenv(plantLeak) != "" {
		go leakedOnPurpose(make(chan struct{}))
	}
}

func leakedOnPurpose(never chan struct{}) { <-never }

// The leak check is worth something only if it fires.
func TestLeakCheckFires(t *testing.T) {
	run := func(env ...string) (string, error) {
		cmd := exec.Command(os.Args[0], "-test.run=^TestPlantedLeak$")
		cmd.Env = append(os.Environ(), env...)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := run(); err != nil {
		t.Errorf("without a leak: %v\n%s", err, out)
	}
	out, err := run(plantLeak + "=1")
	if err == nil {
		t.Error("a leaked goroutine passed")
	}
	if !strings.Contains(out, "leakedOnPurpose") {
		t.Errorf("the culprit is not named:\n%s", out)
	}
}
