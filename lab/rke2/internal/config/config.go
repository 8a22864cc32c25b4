package config

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"regexp"
	"sort"
	"strconv"
	"strings"
)

// Config is one host's validated configuration.
type Config struct {
	Server, Token, AgentToken, NodeName, NodeIP      string
	TLSSAN, NodeLabels, NodeTaints, Disable          []string
	ClusterCIDR, ServiceCIDR, ClusterDomain          string
	Kubeconfig                                       string
	KubeconfigMode                                   os.FileMode
	Profile, EncryptionProvider, AuditPolicyFile     string
	AdmissionConfigFile, NodePortRange               string
	SecretsEncryption, ProtectKernelDefaults, Debug  bool
	APIServerArgs, ControllerManagerArgs             []string
	SchedulerArgs, EtcdArgs                          []string
	SnapshotsDisabled, SnapshotCompress              bool
	SnapshotName, SnapshotCron, SnapshotDir, DataDir string
	SnapshotRetention                                int
	Accepted                                         []string // valid options without effect in the lab
}

var dnsName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$`)

// IsCIS reports whether the hardening profile is on.
func (c *Config) IsCIS() bool { return c.Profile == "cis" }

func build(raw values) (*Config, []error) {
	var problems []error
	note := func(err error) {
		if err != nil {
			problems = append(problems, err)
		}
	}
	flag := func(name string, fallback bool) bool {
		value, err := raw.flag(name, fallback)
		note(err)
		return value
	}
	c := &Config{
		Server: raw.text("server", os.Getenv("RKE2_URL")), NodeIP: raw.text("node-ip", ""),
		TLSSAN: raw.list("tls-san"), NodeLabels: raw.list("node-label"), NodeTaints: raw.list("node-taint"),
		Disable: raw.list("disable"), ClusterCIDR: raw.text("cluster-cidr", "10.42.0.0/16"),
		ServiceCIDR: raw.text("service-cidr", "10.43.0.0/16"), ClusterDomain: raw.text("cluster-domain", "cluster.local"),
		Kubeconfig: raw.text("write-kubeconfig", ""), Profile: raw.text("profile", ""),
		EncryptionProvider: raw.text("secrets-encryption-provider", "aescbc"),
		AuditPolicyFile:    raw.text("audit-policy-file", ""), NodePortRange: raw.text("service-node-port-range", ""),
		AdmissionConfigFile: raw.text("pod-security-admission-config-file", ""),
		APIServerArgs:       raw.list("kube-apiserver-arg"), ControllerManagerArgs: raw.list("kube-controller-manager-arg"),
		SchedulerArgs: raw.list("kube-scheduler-arg"), EtcdArgs: raw.list("etcd-arg"),
		SnapshotName: raw.text("etcd-snapshot-name", "etcd-snapshot"), SnapshotDir: raw.text("etcd-snapshot-dir", ""),
		SnapshotCron: raw.text("etcd-snapshot-schedule-cron", "0 */12 * * *"), DataDir: raw.text("data-dir", ""),
	}
	c.SecretsEncryption = flag("secrets-encryption", true)
	c.ProtectKernelDefaults = flag("protect-kernel-defaults", false)
	c.Debug = flag("debug", false)
	c.SnapshotsDisabled = flag("etcd-disable-snapshots", false)
	c.SnapshotCompress = flag("etcd-snapshot-compress", false)
	var err error
	c.SnapshotRetention, err = raw.number("etcd-snapshot-retention", 5)
	note(err)
	c.Token, err = secret(raw, "token", "RKE2_TOKEN")
	note(err)
	c.AgentToken, err = secret(raw, "agent-token", "RKE2_AGENT_TOKEN")
	note(err)
	note(c.setIdentity(raw.text("node-name", os.Getenv("RKE2_NODE_NAME"))))
	note(c.setKubeconfigMode(raw.text("write-kubeconfig-mode", "0600")))
	problems = append(problems, c.validate()...)
	problems = append(problems, checkKinds(raw)...)
	for name := range raw {
		if keys[name].accepted {
			c.Accepted = append(c.Accepted, name)
		}
	}
	sort.Strings(c.Accepted)
	return c, problems
}

// secret reads a value, its -file twin or the environment, so that no secret has to be in argv.
func secret(raw values, name, variable string) (string, error) {
	if value := raw.text(name, os.Getenv(variable)); value != "" {
		return strings.TrimSpace(value), nil
	}
	file := raw.text(name+"-file", "")
	if file == "" {
		return "", nil
	}
	content, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("option %q: %w", name+"-file", err)
	}
	return strings.TrimSpace(string(content)), nil
}

func checkKinds(raw values) (problems []error) {
	for name, list := range raw {
		if spec := keys[name]; spec.kind != List && len(list) > 1 {
			problems = append(problems, fmt.Errorf("option %q takes one value, not %d", name, len(list)))
		}
	}
	return problems
}

func (c *Config) setIdentity(name string) error {
	if name == "" {
		host, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("unable to read the host name: %w", err)
		}
		name = host
	}
	c.NodeName = strings.ToLower(name)
	if c.NodeIP == "" {
		address, err := defaultAddress()
		if err != nil {
			return fmt.Errorf("unable to find this host's address: %w. Set node-ip", err)
		}
		c.NodeIP = address
	}
	return nil
}

// defaultAddress is the source address of the default route; no packet is sent to find it.
func defaultAddress() (string, error) {
	connection, err := net.Dial("udp4", "192.0.2.1:9")
	if err != nil {
		return "", err
	}
	defer connection.Close()
	return connection.LocalAddr().(*net.UDPAddr).IP.String(), nil
}

func (c *Config) setKubeconfigMode(text string) error {
	mode, err := strconv.ParseUint(text, 8, 9)
	if err != nil {
		return fmt.Errorf("option \"write-kubeconfig-mode\" must be an octal file mode, not %q", text)
	}
	c.KubeconfigMode = os.FileMode(mode)
	return nil
}

func (c *Config) validate() (problems []error) {
	fail := func(format string, arguments ...any) { problems = append(problems, fmt.Errorf(format, arguments...)) }
	if !dnsName.MatchString(c.NodeName) || len(c.NodeName) > 253 {
		fail("option \"node-name\": %q is not a DNS name", c.NodeName)
	}
	if _, err := netip.ParseAddr(c.NodeIP); err != nil {
		fail("option \"node-ip\": %q is not an IP address", c.NodeIP)
	}
	for name, text := range map[string]string{"cluster-cidr": c.ClusterCIDR, "service-cidr": c.ServiceCIDR} {
		if network, err := netip.ParsePrefix(text); err != nil || network != network.Masked() {
			fail("option %q: %q is not a network", name, text)
		}
	}
	if c.Server != "" {
		address, err := url.Parse(c.Server)
		if err != nil || address.Scheme != "https" || address.Hostname() == "" {
			fail("option \"server\": %q is not an https:// URL", c.Server)
		}
	}
	if c.Profile != "" && c.Profile != "cis" && c.Profile != "etcd" {
		fail("invalid value provided for --profile flag: %q; it must be cis or etcd", c.Profile)
	}
	if c.EncryptionProvider != "aescbc" && c.EncryptionProvider != "secretbox" {
		fail("option \"secrets-encryption-provider\" must be aescbc or secretbox, not %q", c.EncryptionProvider)
	}
	for _, chart := range c.Disable {
		if !charts[chart] {
			fail("option \"disable\": there is no packaged component %q", chart)
		}
	}
	problems = append(problems, c.validateNode()...)
	return problems
}

func (c *Config) validateNode() (problems []error) {
	for _, label := range c.NodeLabels {
		name, _, found := strings.Cut(label, "=")
		if !found || name == "" {
			problems = append(problems, fmt.Errorf("option \"node-label\": %q is not key=value", label))
		} else if isReserved(name) {
			problems = append(problems, fmt.Errorf("option \"node-label\": a node must not set %q on itself. Set it with kubectl", name))
		}
	}
	for _, taint := range c.NodeTaints {
		if _, _, _, err := ParseTaint(taint); err != nil {
			problems = append(problems, err)
		}
	}
	return problems
}

// isReserved mirrors the NodeRestriction admission plug-in: only some names of kubernetes.io are a node's own.
func isReserved(name string) bool {
	domain, _, _ := strings.Cut(name, "/")
	if domain == "node-restriction.kubernetes.io" || domain == "node-role.kubernetes.io" {
		return true
	}
	isKubernetes := domain == "kubernetes.io" || domain == "k8s.io" ||
		strings.HasSuffix(domain, ".kubernetes.io") || strings.HasSuffix(domain, ".k8s.io")
	if !isKubernetes || strings.HasPrefix(domain, "kubelet.kubernetes.io") || strings.HasPrefix(domain, "node.kubernetes.io") {
		return false
	}
	return domain != "topology.kubernetes.io"
}

// ParseTaint splits key[=value]:effect.
func ParseTaint(text string) (name, value, effect string, err error) {
	head, effect, found := strings.Cut(text, ":")
	name, value, _ = strings.Cut(head, "=")
	if !found || name == "" || (effect != "NoSchedule" && effect != "NoExecute" && effect != "PreferNoSchedule") {
		return "", "", "", fmt.Errorf("option \"node-taint\": %q is not key[=value]:NoSchedule|PreferNoSchedule|NoExecute", text)
	}
	return name, value, effect, nil
}
