// Package layout is the one place that knows where RKE2 keeps its files.
//
// It promises RKE2's paths below one data directory and one configuration directory, so that a trial can move both.
package layout

import (
	"os"
	"path/filepath"
)

// Layout resolves every path of one host.
type Layout struct {
	Data string // /var/lib/rancher/rke2
	Etc  string // /etc/rancher
}

// DefaultData is where RKE2 keeps its state.
const DefaultData = "/var/lib/rancher/rke2"

// New returns the layout below dataDir; RKE2_ETC_DIR moves /etc/rancher in trials.
func New(dataDir string) Layout {
	if dataDir == "" {
		dataDir = DefaultData
	}
	etc := os.Getenv("RKE2_ETC_DIR")
	if etc == "" {
		etc = "/etc/rancher"
	}
	return Layout{Data: dataDir, Etc: etc}
}

func (l Layout) Server(elem ...string) string { return l.join("server", elem) }
func (l Layout) TLS(elem ...string) string    { return l.join("server/tls", elem) }
func (l Layout) Cred(elem ...string) string   { return l.join("server/cred", elem) }
func (l Layout) Agent(elem ...string) string  { return l.join("agent", elem) }
func (l Layout) Bin(elem ...string) string    { return l.join("bin", elem) }

func (l Layout) EtcdData() string         { return l.Server("db", "etcd") }
func (l Layout) Snapshots() string        { return l.Server("db", "snapshots") }
func (l Layout) EncryptionConfig() string { return l.Cred("encryption-config.json") }
func (l Layout) Token() string            { return l.Server("token") }
func (l Layout) NodeToken() string        { return l.Server("node-token") }
func (l Layout) AgentToken() string       { return l.Server("agent-token") }
func (l Layout) AuditLog() string         { return l.Server("logs", "audit.log") }
func (l Layout) Kubeconfig() string       { return filepath.Join(l.Etc, "rke2", "rke2.yaml") }
func (l Layout) NodePassword() string     { return filepath.Join(l.Etc, "node", "password") }
func (l Layout) Config() string           { return filepath.Join(l.Etc, "rke2", "config.yaml") }

func (l Layout) join(base string, elem []string) string {
	return filepath.Join(append([]string{l.Data, base}, elem...)...)
}

// Libexec is the directory of the real Kubernetes binaries that the tarball brings.
func Libexec() (string, error) {
	if dir := os.Getenv("RKE2_LIBEXEC"); dir != "" {
		return dir, nil
	}
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	if self, err = filepath.EvalSymlinks(self); err != nil {
		return "", err
	}
	return filepath.Join(filepath.Dir(self), "..", "libexec", "rke2"), nil
}

// WriteAtomic replaces a file so that a kill leaves either the old content or the new one.
func WriteAtomic(path string, content []byte, mode os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	temporary, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(temporary.Name())
	if _, err = temporary.Write(content); err == nil {
		err = temporary.Chmod(mode)
	}
	if err == nil {
		err = temporary.Sync()
	}
	if closeErr := temporary.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return err
	}
	return os.Rename(temporary.Name(), path)
}
