package rules

import (
	_ "time/tzdata" // the tests' zones, also where the host has none
)
