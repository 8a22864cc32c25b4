// Package agent is what every host runs: certificates from a server, the Node object, and kwok in place of a kubelet.
//
// It promises RKE2's behaviour towards a server: the node password is made once and proves that the name is still the
// same host's; a refused password is told and tried again, never worked around.
package agent

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"infraflows/lab/rke2/internal/access"
	"infraflows/lab/rke2/internal/config"
	"infraflows/lab/rke2/internal/kube"
	"infraflows/lab/rke2/internal/layout"
	"infraflows/lab/rke2/internal/logging"
	"infraflows/lab/rke2/internal/pki"
	"infraflows/lab/rke2/internal/process"
	"infraflows/lab/rke2/internal/token"
)

const (
	poll      = 200 * time.Millisecond
	slowPoll  = 2 * time.Second
	apiServer = "https://127.0.0.1:6443"
)

// Agent is one host's agent part.
type Agent struct {
	Config  *config.Config
	Layout  layout.Layout
	Token   token.Token
	Server  string // the supervisor's URL
	Libexec string
	kwok    *process.Supervised
	client  *kube.Client
}

// Start returns once the Node is registered and kwok runs.
func (a *Agent) Start(ctx context.Context) error {
	password, err := nodePassword(a.Layout)
	if err != nil {
		return err
	}
	if err = a.enroll(ctx, password); err != nil {
		return err
	}
	credentials := kube.Credentials{
		Authority: a.Layout.Agent("server-ca.crt"), Certificate: a.Layout.Agent("client-kubelet.crt"),
		Key: a.Layout.Agent("client-kubelet.key"),
	}
	kubeconfig := a.Layout.Agent("kubelet.kubeconfig")
	if err = kube.WriteComponentKubeconfig(kubeconfig, apiServer, credentials); err != nil {
		return err
	}
	if a.client, err = kube.NewClient(apiServer, credentials); err != nil {
		return err
	}
	if err = a.registerNode(ctx); err != nil {
		return err
	}
	a.kwok, err = startKwok(a.Config, a.Layout, a.Libexec, kubeconfig)
	return err
}

// Stop ends kwok: the node's lease is no longer renewed and the cluster will see the node as not ready.
func (a *Agent) Stop() {
	if a.kwok != nil {
		a.kwok.Stop()
	}
}

func (a *Agent) registerNode(ctx context.Context) error {
	err := retry(ctx, "register node "+a.Config.NodeName, func() error {
		return register(ctx, a.client, a.Config, a.Layout)
	})
	if err != nil {
		return err
	}
	logging.Info("Registered node %s", a.Config.NodeName)
	// The lease of an earlier run names an earlier holder; without this the new one would wait until it expires.
	lease := "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/" + a.Config.NodeName
	if err = a.client.Delete(ctx, lease); err != nil {
		logging.Warning("Unable to give back the node's old lease: %v", err)
	}
	podCIDR := ""
	err = retry(ctx, "find the pod network of node "+a.Config.NodeName, func() error {
		node, err := a.client.Get(ctx, "/api/v1/nodes/"+a.Config.NodeName)
		if podCIDR = kube.Text(node, "spec", "podCIDR"); err == nil && podCIDR == "" {
			err = fmt.Errorf("the controller-manager has not assigned it yet")
		}
		return err
	})
	if err != nil {
		return err
	}
	return retry(ctx, "remove an earlier node's pods", func() error {
		return evictStrangers(ctx, a.client, a.Config.NodeName, podCIDR)
	})
}

// retry repeats an act until it succeeds; the reason is logged when it changes, not at every turn.
func retry(ctx context.Context, what string, act func() error) error {
	last, pause := "", poll
	for {
		err := act()
		if err == nil {
			return nil
		}
		if err.Error() != last {
			last = err.Error()
			logging.Info("Waiting to %s: %v", what, err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
		pause = min(pause+50*time.Millisecond, slowPoll)
	}
}

func nodePassword(l layout.Layout) (string, error) {
	content, err := os.ReadFile(l.NodePassword())
	if err == nil {
		return strings.TrimSpace(string(content)), nil
	}
	if !os.IsNotExist(err) {
		return "", err
	}
	raw := make([]byte, 16)
	if _, err = rand.Read(raw); err != nil {
		return "", err
	}
	password := hex.EncodeToString(raw)
	return password, layout.WriteAtomic(l.NodePassword(), []byte(password+"\n"), 0o600)
}

// enroll gets the node's two certificates; it goes on asking while servers are absent or refuse the host.
func (a *Agent) enroll(ctx context.Context, password string) error {
	for {
		err := a.enrollOnce(ctx, password)
		if err == nil {
			return nil
		}
		pause := poll * 2
		if access.IsRefused(err) {
			logging.Error("%v", err)
			pause = 5 * time.Second
		} else {
			logging.Info("Waiting to retrieve agent configuration; server is not ready: %v", err)
			pause = min(pause*2, time.Second)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

func (a *Agent) enrollOnce(ctx context.Context, password string) error {
	server, err := access.Connect(ctx, a.Server, a.Token)
	if err != nil {
		return err
	}
	headers := map[string]string{
		"rke2-Node-Name": a.Config.NodeName, "rke2-Node-Password": password, "rke2-Node-IP": a.Config.NodeIP,
	}
	for _, name := range []string{"client-kubelet", "serving-kubelet"} {
		if err = a.enrollCertificate(ctx, server, name, headers); err != nil {
			return err
		}
	}
	authority, err := server.Call(ctx, http.MethodGet, "/v1-rke2/client-ca.crt", nil, nil)
	if err != nil {
		return err
	}
	if err = layout.WriteAtomic(a.Layout.Agent("client-ca.crt"), authority, 0o644); err != nil {
		return err
	}
	return layout.WriteAtomic(a.Layout.Agent("server-ca.crt"), server.CA, 0o644)
}

func (a *Agent) enrollCertificate(ctx context.Context, server *access.Access, name string, headers map[string]string) error {
	key, keyPEM, err := pki.NewKey()
	if err != nil {
		return err
	}
	request, err := certificateRequest(key, a.Config)
	if err != nil {
		return err
	}
	certificate, err := server.Call(ctx, http.MethodPost, "/v1-rke2/"+name+".crt", headers, request)
	if err != nil {
		return err
	}
	if err = layout.WriteAtomic(a.Layout.Agent(name+".key"), keyPEM, 0o600); err != nil {
		return err
	}
	return layout.WriteAtomic(a.Layout.Agent(name+".crt"), certificate, 0o600)
}

func certificateRequest(key *ecdsa.PrivateKey, c *config.Config) ([]byte, error) {
	template := &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "system:node:" + c.NodeName, Organization: []string{"system:nodes"}},
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), nil
}

// hostOf returns the host name of a supervisor's URL and its port.
func hostOf(server string) (host, port string, err error) {
	address, err := url.Parse(server)
	if err != nil {
		return "", "", err
	}
	port = address.Port()
	if port == "" {
		port = "9345"
	}
	return address.Hostname(), port, nil
}

func join(host, port string) string { return net.JoinHostPort(host, port) }
