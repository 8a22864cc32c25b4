package pki

import (
	"net"
	"net/netip"
	"os"

	"infraflows/lab/rke2/internal/config"
	"infraflows/lab/rke2/internal/layout"
)

// Authorities are the cluster's five certificate authorities.
type Authorities struct {
	Server, Client, RequestHeader, EtcdServer, EtcdPeer *Authority
}

// ClusterFiles are what every server of a cluster shares, relative to server/tls.
var ClusterFiles = []string{
	"server-ca.crt", "server-ca.key", "client-ca.crt", "client-ca.key", "request-header-ca.crt",
	"request-header-ca.key", "etcd/server-ca.crt", "etcd/server-ca.key", "etcd/peer-ca.crt", "etcd/peer-ca.key",
	"service.key",
}

// EnsureAuthorities makes what is missing of a new cluster's authorities and loads them all.
func EnsureAuthorities(l layout.Layout) (*Authorities, error) {
	result := &Authorities{}
	for _, item := range []struct {
		target *(*Authority)
		path   string
		name   string
	}{
		{&result.Server, l.TLS("server-ca"), "rke2-server-ca"},
		{&result.Client, l.TLS("client-ca"), "rke2-client-ca"},
		{&result.RequestHeader, l.TLS("request-header-ca"), "rke2-request-header-ca"},
		{&result.EtcdServer, l.TLS("etcd", "server-ca"), "etcd-server-ca"},
		{&result.EtcdPeer, l.TLS("etcd", "peer-ca"), "etcd-peer-ca"},
	} {
		authority, err := EnsureAuthority(item.path, item.name)
		if err != nil {
			return nil, err
		}
		*item.target = authority
	}
	if _, err := os.Stat(l.TLS("service.key")); os.IsNotExist(err) {
		_, key, err := NewKey()
		if err != nil {
			return nil, err
		}
		if err = layout.WriteAtomic(l.TLS("service.key"), key, 0o600); err != nil {
			return nil, err
		}
	}
	return result, nil
}

type issue struct {
	authority *Authority
	path      string
	leaf      Leaf
}

// EnsureServerLeaves keeps every leaf certificate of a server valid and returns the paths that it wrote.
func EnsureServerLeaves(l layout.Layout, c *config.Config, a *Authorities) ([]string, error) {
	var written []string
	for _, item := range serverLeaves(l, c, a) {
		isWritten, err := item.authority.EnsureLeaf(item.path, item.leaf)
		if err != nil {
			return written, err
		}
		if isWritten {
			written = append(written, item.path+".crt")
		}
	}
	return written, nil
}

func serverLeaves(l layout.Layout, c *config.Config, a *Authorities) []issue {
	client := func(name string, groups ...string) Leaf {
		return Leaf{CommonName: name, Groups: groups, IsClient: true}
	}
	etcdNames := unique("localhost", "127.0.0.1", c.NodeIP, c.NodeName)
	local := unique("localhost", "127.0.0.1")
	return []issue{
		{a.Client, l.TLS("client-admin"), client("system:admin", "system:masters")},
		{a.Client, l.TLS("client-supervisor"), client("system:rke2-supervisor", "system:masters")},
		{a.Client, l.TLS("client-controller"), client("system:kube-controller-manager")},
		{a.Client, l.TLS("client-scheduler"), client("system:kube-scheduler")},
		{a.Client, l.TLS("client-kube-apiserver"), client("system:apiserver", "system:masters")},
		{a.RequestHeader, l.TLS("client-auth-proxy"), client("system:auth-proxy")},
		{a.Server, l.TLS("serving-kube-apiserver"), Leaf{CommonName: "kube-apiserver", IsServer: true, Names: servingNames(c)}},
		{a.Server, l.TLS("kube-controller-manager", "kube-controller-manager"),
			Leaf{CommonName: "kube-controller-manager", IsServer: true, Names: local}},
		{a.Server, l.TLS("kube-scheduler", "kube-scheduler"), Leaf{CommonName: "kube-scheduler", IsServer: true, Names: local}},
		{a.EtcdServer, l.TLS("etcd", "client"), client("etcd-client")},
		// etcd's own HTTP gateway dials the server with the server's certificate: it must serve as a client's too.
		{a.EtcdServer, l.TLS("etcd", "server-client"),
			Leaf{CommonName: "etcd-server", IsServer: true, IsClient: true, Names: etcdNames}},
		{a.EtcdPeer, l.TLS("etcd", "peer-server-client"),
			Leaf{CommonName: "etcd-peer", IsServer: true, IsClient: true, Names: etcdNames}},
	}
}

func servingNames(c *config.Config) []string {
	names := []string{
		"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc." + c.ClusterDomain,
		"localhost", "127.0.0.1", c.NodeName, c.NodeIP, FirstAddress(c.ServiceCIDR),
	}
	return unique(append(names, c.TLSSAN...)...)
}

// FirstAddress is the address of the `kubernetes` service.
func FirstAddress(cidr string) string {
	network, err := netip.ParsePrefix(cidr)
	if err != nil {
		return ""
	}
	return network.Masked().Addr().Next().String()
}

func unique(names ...string) []string {
	seen := map[string]bool{}
	var result []string
	for _, name := range names {
		if address := net.ParseIP(name); address != nil {
			name = address.String()
		}
		if name != "" && !seen[name] {
			seen[name] = true
			result = append(result, name)
		}
	}
	return result
}
