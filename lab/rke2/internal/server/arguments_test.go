package server

import (
	"slices"
	"strings"
	"testing"

	"infraflows/lab/rke2/internal/config"
	"infraflows/lab/rke2/internal/layout"
)

func TestTheSitesArgumentsOverrideAppendAndRepeat(t *testing.T) {
	merged := arguments{"profiling": "false", "api-audiences": "a"}.merge([]string{
		"profiling=true", "api-audiences+=b", "--v=4", "tls-sni-cert-key=x,y", "tls-sni-cert-key=z,w", "contention-profiling",
	})
	expected := []string{
		"--api-audiences=a,b", "--contention-profiling=true", "--profiling=true", "--v=4",
		"--tls-sni-cert-key=x,y", "--tls-sni-cert-key=z,w",
	}
	if !slices.Equal(merged, expected) {
		t.Fatalf("%q", merged)
	}
}

func TestNoSecretIsOnAComponentsCommandLine(t *testing.T) {
	c := &config.Config{NodeName: "one", NodeIP: "10.0.0.1", Token: "planted-server", AgentToken: "planted-agent",
		ServiceCIDR: "10.43.0.0/16", ClusterCIDR: "10.42.0.0/16", ClusterDomain: "cluster.local", SecretsEncryption: true}
	s := New(c, layout.New(t.TempDir()), "/libexec")
	all := slices.Concat(s.apiServerArguments(), s.controllerManagerArguments(), s.schedulerArguments())
	text := strings.Join(all, " ")
	if strings.Contains(text, "planted") {
		t.Fatal("a token is on a command line")
	}
	for _, flag := range []string{"--anonymous-auth=false", "--authorization-mode=Node,RBAC", "--encryption-provider-config=",
		"--audit-log-path=", "--enable-admission-plugins=NodeRestriction"} {
		if !strings.Contains(text, flag) {
			t.Errorf("%s is missing", flag)
		}
	}
}

func TestANodePasswordIsKeptAsASaltedHash(t *testing.T) {
	first, err := hashPassword("secret", nil)
	if err != nil {
		t.Fatal(err)
	}
	second, err := hashPassword("secret", nil)
	if err != nil || first == second || strings.Contains(first, "secret") {
		t.Fatalf("%q %q %v", first, second, err)
	}
	if !isPassword("secret", first) || isPassword("other", first) || isPassword("secret", "damaged") {
		t.Fatal("the hash does not tell passwords apart")
	}
}
