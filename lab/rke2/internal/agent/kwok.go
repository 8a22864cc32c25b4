package agent

import (
	_ "embed"
	"path/filepath"

	"infraflows/lab/rke2/internal/config"
	"infraflows/lab/rke2/internal/layout"
	"infraflows/lab/rke2/internal/process"
)

//go:embed kwok.yaml
var kwokStages []byte

// startKwok runs the stand-in for the kubelet: it manages only this host's Node and the pods that are bound to it.
func startKwok(c *config.Config, l layout.Layout, libexec, kubeconfig string) (*process.Supervised, error) {
	stages := l.Agent("etc", "kwok.yaml")
	if err := layout.WriteAtomic(stages, kwokStages, 0o600); err != nil {
		return nil, err
	}
	return process.Supervise(process.Child{
		Name: "kwok", Path: filepath.Join(libexec, "kwok"),
		Arguments: []string{
			"--config=" + stages, "--kubeconfig=" + kubeconfig, "--manage-single-node=" + c.NodeName,
			"--node-ip=" + c.NodeIP, "--node-name=" + c.NodeName, "--node-lease-duration-seconds=40",
		},
		Environment: []string{"GOGC=50", "GOMEMLIMIT=256MiB"},
		LogFile:     l.Agent("logs", "kubelet.log"),
	})
}
