package server

import (
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"infraflows/lab/rke2/internal/kube"
	"infraflows/lab/rke2/internal/process"
)

// arguments holds a component's flags; the user's override ours of the same name, and name+= appends.
type arguments map[string]string

func (a arguments) merge(extra []string) []string {
	var repeated []string
	for _, item := range extra {
		name, value, found := strings.Cut(strings.TrimLeft(item, "-"), "=")
		if !found {
			value = "true"
		}
		plain := strings.TrimSuffix(name, "+")
		switch previous, isSet := a[plain]; {
		case plain != name && isSet:
			a[plain] = previous + "," + value
		case isRepeatable[plain]:
			repeated = append(repeated, "--"+plain+"="+value)
		default:
			a[plain] = value
		}
	}
	var result []string
	for name, value := range a {
		result = append(result, "--"+name+"="+value)
	}
	sort.Strings(result)
	return append(result, repeated...)
}

// isRepeatable lists flags that take one value each time they are given.
var isRepeatable = map[string]bool{"tls-sni-cert-key": true, "service-account-issuer": true, "etcd-servers-overrides": true}

func (s *Server) apiServerArguments() []string {
	l, c := s.layout, s.config
	issuer := "https://kubernetes.default.svc." + c.ClusterDomain
	a := arguments{
		"advertise-address": c.NodeIP, "allow-privileged": "true", "anonymous-auth": "false",
		"api-audiences": issuer + ",rke2", "audit-log-maxage": "30", "audit-log-maxbackup": "10",
		"audit-log-maxsize": "100", "audit-log-path": l.AuditLog(), "audit-policy-file": s.auditPolicy(),
		"authorization-mode": "Node,RBAC", "bind-address": "0.0.0.0", "cert-dir": l.TLS("temporary-certs"),
		"client-ca-file": l.TLS("client-ca.crt"), "enable-admission-plugins": "NodeRestriction",
		"enable-aggregator-routing": "true", "enable-bootstrap-token-auth": "true",
		"etcd-cafile": l.TLS("etcd", "server-ca.crt"), "etcd-certfile": l.TLS("etcd", "client.crt"),
		"etcd-keyfile": l.TLS("etcd", "client.key"), "etcd-servers": "https://127.0.0.1:2379",
		"kubelet-certificate-authority":   l.TLS("server-ca.crt"),
		"kubelet-client-certificate":      l.TLS("client-kube-apiserver.crt"),
		"kubelet-client-key":              l.TLS("client-kube-apiserver.key"),
		"kubelet-preferred-address-types": "InternalIP,ExternalIP,Hostname", "profiling": "false",
		"proxy-client-cert-file": l.TLS("client-auth-proxy.crt"), "proxy-client-key-file": l.TLS("client-auth-proxy.key"),
		"requestheader-allowed-names": "system:auth-proxy", "requestheader-client-ca-file": l.TLS("request-header-ca.crt"),
		"requestheader-extra-headers-prefix": "X-Remote-Extra-", "requestheader-group-headers": "X-Remote-Group",
		"requestheader-username-headers": "X-Remote-User", "secure-port": "6443", "service-account-issuer": issuer,
		"service-account-key-file": l.TLS("service.key"), "service-account-signing-key-file": l.TLS("service.key"),
		"service-cluster-ip-range": c.ServiceCIDR, "storage-backend": "etcd3",
		"tls-cert-file": l.TLS("serving-kube-apiserver.crt"), "tls-private-key-file": l.TLS("serving-kube-apiserver.key"),
		"tls-min-version": "VersionTLS12", "shutdown-delay-duration": "0s",
		// Smaller than the defaults: a lab's API server serves a handful of clients.
		"max-requests-inflight": "200", "max-mutating-requests-inflight": "100", "delete-collection-workers": "1",
	}
	return s.optional(a).merge(c.APIServerArgs)
}

// optional adds the API server's flags that depend on the configuration.
func (s *Server) optional(a arguments) arguments {
	c := s.config
	if c.SecretsEncryption {
		a["encryption-provider-config"] = s.layout.EncryptionConfig()
	}
	if c.NodePortRange != "" {
		a["service-node-port-range"] = c.NodePortRange
	}
	if file := s.admissionConfig(); file != "" {
		a["admission-control-config-file"] = file
	}
	return a
}

func (s *Server) controllerManagerArguments() []string {
	l, c := s.layout, s.config
	kubeconfig := l.Cred("controller.kubeconfig")
	a := arguments{
		"allocate-node-cidrs": "true", "authentication-kubeconfig": kubeconfig, "authorization-kubeconfig": kubeconfig,
		"bind-address": "127.0.0.1", "cluster-cidr": c.ClusterCIDR, "configure-cloud-routes": "false",
		"controllers": "*,tokencleaner", "kubeconfig": kubeconfig, "leader-elect": "true", "profiling": "false",
		"root-ca-file": l.TLS("server-ca.crt"), "secure-port": "10257",
		"service-account-private-key-file": l.TLS("service.key"), "service-cluster-ip-range": c.ServiceCIDR,
		"terminated-pod-gc-threshold": "1000", "kube-api-qps": "150", "kube-api-burst": "300", "use-service-account-credentials": "true",
		"tls-cert-file":        l.TLS("kube-controller-manager", "kube-controller-manager.crt"),
		"tls-private-key-file": l.TLS("kube-controller-manager", "kube-controller-manager.key"),
	}
	for signer, authority := range map[string]string{
		"kubelet-client": "client-ca", "kube-apiserver-client": "client-ca", "kubelet-serving": "server-ca",
		"legacy-unknown": "server-ca",
	} {
		a["cluster-signing-"+signer+"-cert-file"] = l.TLS(authority + ".crt")
		a["cluster-signing-"+signer+"-key-file"] = l.TLS(authority + ".key")
	}
	return a.merge(c.ControllerManagerArgs)
}

func (s *Server) schedulerArguments() []string {
	l := s.layout
	kubeconfig := l.Cred("scheduler.kubeconfig")
	return arguments{
		"authentication-kubeconfig": kubeconfig, "authorization-kubeconfig": kubeconfig, "bind-address": "127.0.0.1",
		"kubeconfig": kubeconfig, "leader-elect": "true", "profiling": "false", "secure-port": "10259",
		"tls-cert-file":        l.TLS("kube-scheduler", "kube-scheduler.crt"),
		"tls-private-key-file": l.TLS("kube-scheduler", "kube-scheduler.key"),
	}.merge(s.config.SchedulerArgs)
}

// component starts a control plane process with a small garbage collector's appetite. The memory limit lies well above
// what it holds with every custom resource of the platform: a limit below that makes it collect without end. An API
// server would wait a minute for its watchers to leave; they reconnect anyway, so its patience is short.
func (s *Server) component(name string, arguments []string, memoryLimit string) (*process.Supervised, error) {
	return process.Supervise(process.Child{
		Name: name, Path: filepath.Join(s.libexec, name), Arguments: arguments,
		Environment: []string{"GOGC=50", "GOMEMLIMIT=" + memoryLimit},
		LogFile:     s.layout.Agent("logs", name+".log"), StopTimeout: 3 * time.Second,
	})
}

func (s *Server) writeKubeconfigs() error {
	l := s.layout
	identity := func(name string) kube.Credentials {
		return kube.Credentials{
			Authority: l.TLS("server-ca.crt"), Certificate: l.TLS(name + ".crt"), Key: l.TLS(name + ".key"),
		}
	}
	for file, name := range map[string]string{
		"controller.kubeconfig": "client-controller", "scheduler.kubeconfig": "client-scheduler",
		"supervisor.kubeconfig": "client-supervisor", "admin.kubeconfig": "client-admin",
	} {
		if err := kube.WriteComponentKubeconfig(l.Cred(file), localAPI, identity(name)); err != nil {
			return err
		}
	}
	path := s.config.Kubeconfig
	if path == "" {
		path = l.Kubeconfig()
	}
	return kube.WriteKubeconfig(path, localAPI, identity("client-admin"), s.config.KubeconfigMode)
}

// noAudit is RKE2's default policy: the audit log is on, and records what the site's own policy says.
const noAudit = "apiVersion: audit.k8s.io/v1\nkind: Policy\nmetadata: {}\nrules:\n- level: None\n"

func (s *Server) auditPolicy() string {
	if s.config.AuditPolicyFile != "" {
		return s.config.AuditPolicyFile
	}
	return filepath.Join(s.layout.Etc, "rke2", "audit-policy.yaml")
}

func (s *Server) admissionConfig() string {
	if s.config.AdmissionConfigFile != "" {
		return s.config.AdmissionConfigFile
	}
	return filepath.Join(s.layout.Etc, "rke2", "rke2-pss.yaml")
}

// podSecurity is the default Pod Security configuration: restricted under profile cis, privileged otherwise.
func podSecurity(isCIS bool) string {
	level, namespaces := "privileged", "[]"
	if isCIS {
		level, namespaces = "restricted", "[kube-system, cis-operator-system, tigera-operator]"
	}
	return strings.NewReplacer("LEVEL", level, "NAMESPACES", namespaces).Replace(`apiVersion: apiserver.config.k8s.io/v1
kind: AdmissionConfiguration
plugins:
- name: PodSecurity
  configuration:
    apiVersion: pod-security.admission.config.k8s.io/v1
    kind: PodSecurityConfiguration
    defaults:
      enforce: "LEVEL"
      enforce-version: "latest"
      audit: "LEVEL"
      audit-version: "latest"
      warn: "LEVEL"
      warn-version: "latest"
    exemptions:
      usernames: []
      runtimeClasses: []
      namespaces: NAMESPACES
`)
}

// writeDefaults places the files that RKE2 makes when the site has not; what the site wrote stays.
func (s *Server) writeDefaults() error {
	defaults := map[string]string{}
	if s.config.AuditPolicyFile == "" {
		defaults[s.auditPolicy()] = noAudit
	}
	if s.config.AdmissionConfigFile == "" {
		defaults[s.admissionConfig()] = podSecurity(s.config.IsCIS())
	}
	for path, content := range defaults {
		if _, err := os.Stat(path); err == nil {
			continue
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			return err
		}
	}
	return os.MkdirAll(s.layout.Server("logs"), 0o700)
}
