package pki

import (
	"crypto/x509"
	"os"
	"path/filepath"
	"testing"

	"infraflows/lab/rke2/internal/config"
	"infraflows/lab/rke2/internal/layout"
)

func TestAnAuthorityIsMadeOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tls", "server-ca")
	first, err := EnsureAuthority(path, "rke2-server-ca")
	if err != nil {
		t.Fatal(err)
	}
	second, err := EnsureAuthority(path, "rke2-server-ca")
	if err != nil || !first.Certificate.Equal(second.Certificate) {
		t.Fatalf("the authority was replaced: %v", err)
	}
}

func TestALeafIsRenewedWhenItsNamesOrItsAuthorityChange(t *testing.T) {
	directory := t.TempDir()
	authority, err := EnsureAuthority(filepath.Join(directory, "ca"), "ca")
	if err != nil {
		t.Fatal(err)
	}
	other, err := EnsureAuthority(filepath.Join(directory, "other"), "ca")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(directory, "leaf")
	leaf := Leaf{CommonName: "x", IsServer: true, Names: []string{"127.0.0.1", "host"}}
	renamed := Leaf{CommonName: "x", IsServer: true, Names: []string{"127.0.0.1", "host", "10.0.0.100"}}
	for _, step := range []struct {
		authority *Authority
		leaf      Leaf
		before    func()
		isWritten bool
	}{
		{authority, leaf, nil, true}, {authority, leaf, nil, false}, {authority, renamed, nil, true},
		{other, renamed, nil, true}, {other, renamed, func() { os.Remove(path + ".key") }, true},
		{other, renamed, func() { os.Remove(path + ".crt") }, true}, {other, renamed, nil, false},
	} {
		if step.before != nil {
			step.before()
		}
		isWritten, err := step.authority.EnsureLeaf(path, step.leaf)
		if err != nil || isWritten != step.isWritten {
			t.Fatalf("written %v, expected %v (%v)", isWritten, step.isWritten, err)
		}
	}
}

func TestServerLeavesVerifyAndTheKubeconfigIsTheAdministrators(t *testing.T) {
	l := layout.New(t.TempDir())
	c := &config.Config{NodeName: "one", NodeIP: "10.0.0.1", TLSSAN: []string{"10.0.0.100", "api.example", "10.0.0.1"},
		ServiceCIDR: "10.43.0.0/16", ClusterDomain: "cluster.local"}
	authorities, err := EnsureAuthorities(l)
	if err != nil {
		t.Fatal(err)
	}
	written, err := EnsureServerLeaves(l, c, authorities)
	if err != nil || len(written) == 0 {
		t.Fatal(err)
	}
	if again, err := EnsureServerLeaves(l, c, authorities); err != nil || len(again) != 0 {
		t.Fatalf("a second run wrote %v (%v)", again, err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(authorities.Server.Certificate)
	serving := load(t, l.TLS("serving-kube-apiserver.crt"))
	for _, name := range []string{"10.0.0.100", "api.example", "10.43.0.1", "kubernetes.default.svc.cluster.local", "127.0.0.1"} {
		if _, err = serving.Verify(x509.VerifyOptions{DNSName: name, Roots: pool}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	subject := load(t, l.TLS("client-admin.crt")).Subject
	if subject.CommonName != "system:admin" || len(subject.Organization) != 1 || subject.Organization[0] != "system:masters" {
		t.Fatalf("the administrator is %s", subject)
	}
}

func load(t *testing.T, path string) *x509.Certificate {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := ParseCertificate(content)
	if err != nil {
		t.Fatal(err)
	}
	return certificate
}
