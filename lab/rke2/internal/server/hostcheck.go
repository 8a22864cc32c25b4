package server

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"strings"

	"infraflows/lab/rke2/internal/config"
	"infraflows/lab/rke2/internal/logging"
)

// kernelDefaults are what RKE2 demands under profile cis or with protect-kernel-defaults.
var kernelDefaults = map[string]string{
	"vm/panic_on_oom": "0", "vm/overcommit_memory": "1", "kernel/panic": "10", "kernel/panic_on_oops": "1",
}

// checkHost applies the checks of profile cis. A container cannot set kernel parameters of its host, so there a wrong
// parameter is a warning: what the site's real hosts refuse is still said aloud.
func checkHost(c *config.Config) error {
	var problems []error
	if c.IsCIS() {
		if _, err := user.Lookup("etcd"); err != nil {
			problems = append(problems, fmt.Errorf("missing required: user: unknown user etcd"))
		}
		if _, err := user.LookupGroup("etcd"); err != nil {
			problems = append(problems, fmt.Errorf("missing required: group: unknown group etcd"))
		}
	}
	return errors.Join(append(problems, CheckKernel(c))...)
}

// CheckKernel applies the part of the checks that agents share.
func CheckKernel(c *config.Config) error {
	if !c.IsCIS() && !c.ProtectKernelDefaults {
		return nil
	}
	var problems []error
	_, err := os.Stat("/run/systemd/container")
	isContainer := err == nil
	for name, expected := range kernelDefaults {
		content, err := os.ReadFile("/proc/sys/" + name)
		actual := strings.TrimSpace(string(content))
		if err == nil && actual == expected {
			continue
		}
		problem := fmt.Errorf("invalid kernel parameter value %s=%s - expected %s",
			strings.ReplaceAll(name, "/", "."), actual, expected)
		if isContainer {
			logging.Warning("%v (only a warning in a container, whose kernel is its host's)", problem)
			continue
		}
		problems = append(problems, problem)
	}
	return errors.Join(problems...)
}
