package config

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func write(t *testing.T, files map[string]string) string {
	t.Helper()
	directory := t.TempDir()
	for name, content := range files {
		path := filepath.Join(directory, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(directory, "config.yaml")
}

const minimal = "node-name: one\nnode-ip: 10.0.0.1\n"

func TestDropInsOverrideAndAppend(t *testing.T) {
	path := write(t, map[string]string{
		"config.yaml":               minimal + "token: first\ntls-san: [a.example]\n",
		"config.yaml.d/10-one.yaml": "token: second\ntls-san+: [b.example]\n",
		"config.yaml.d/20-two.yaml": "node-label: [\"a=b\"]\n",
	})
	c, err := Load(path, []string{"--node-ip", "10.0.0.9"})
	if err != nil {
		t.Fatal(err)
	}
	if c.Token != "second" || !slices.Equal(c.TLSSAN, []string{"a.example", "b.example"}) || c.NodeIP != "10.0.0.9" {
		t.Fatalf("token %q, san %v, address %q", c.Token, c.TLSSAN, c.NodeIP)
	}
}

func TestEveryProblemIsToldAtOnce(t *testing.T) {
	path := write(t, map[string]string{"config.yaml": minimal + `
tokn: x
profile: cis-1.23
cluster-cidr: 10.42.0.1/16
server: http://10.0.0.1:9345
disable: [rke2-unknown]
node-taint: [a=b]
node-label: ["node-role.kubernetes.io/worker=true"]
etcd-snapshot-retention: many
write-kubeconfig-mode: "0999"
secrets-encryption: perhaps
`})
	_, err := Load(path, []string{"--nonsense"})
	if err == nil {
		t.Fatal("the configuration was accepted")
	}
	for _, expected := range []string{
		`unknown option "tokn"`, `--profile`, `option "cluster-cidr"`, `option "server"`, `"rke2-unknown"`,
		`option "node-taint"`, `a node must not set`, `etcd-snapshot-retention`, `write-kubeconfig-mode`,
		`option "secrets-encryption"`, `flag provided but not defined: --nonsense`,
	} {
		if !strings.Contains(err.Error(), expected) {
			t.Errorf("%q is missing in:\n%v", expected, err)
		}
	}
}

func TestOptionsWithoutEffectAreNamed(t *testing.T) {
	path := write(t, map[string]string{"config.yaml": minimal + "cni: canal\nselinux: true\n"})
	c, err := Load(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(c.Accepted, []string{"cni", "selinux"}) {
		t.Fatalf("accepted %v", c.Accepted)
	}
}

func TestComponentArgumentsKeepTheirCommas(t *testing.T) {
	path := write(t, map[string]string{
		"config.yaml": minimal + "kube-apiserver-arg: [\"tls-cipher-suites=A,B\"]\ntls-san: [\"x,y\"]\n",
	})
	c, err := Load(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(c.APIServerArgs, []string{"tls-cipher-suites=A,B"}) || len(c.TLSSAN) != 2 {
		t.Fatalf("arguments %q, san %q", c.APIServerArgs, c.TLSSAN)
	}
}

func TestATokenFileKeepsTheSecretOutOfTheConfiguration(t *testing.T) {
	path := write(t, map[string]string{"config.yaml": minimal, "secret": "from-a-file\n"})
	c, err := Load(path, []string{"--token-file", filepath.Join(filepath.Dir(path), "secret")})
	if err != nil || c.Token != "from-a-file" {
		t.Fatalf("token %q, error %v", c.Token, err)
	}
}
