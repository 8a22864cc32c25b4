package etcd

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"gopkg.in/yaml.v3"

	"infraflows/lab/rke2/internal/config"
	"infraflows/lab/rke2/internal/layout"
	"infraflows/lab/rke2/internal/logging"
)

// Join is what a new member needs to know to start.
type Join struct {
	Name           string `json:"name"`
	InitialCluster string `json:"initialCluster"`
	IsNew          bool   `json:"isNew"`
}

// ErrDuplicate says that a live member holds the address.
var ErrDuplicate = errors.New("duplicate node name found, please use a unique name for this node")

// PeerURL is where the other members find this host.
func PeerURL(c *config.Config) string { return "https://" + hostPort(c.NodeIP, "2380") }

func hostPort(address, port string) string {
	if strings.Contains(address, ":") {
		return "[" + address + "]:" + port
	}
	return address + ":" + port
}

// IsInitialised reports whether this host's member has a log of its own; etcd creates that in one rename.
func IsInitialised(l layout.Layout) bool {
	_, err := os.Stat(filepath.Join(l.EtcdData(), "member", "wal"))
	return err == nil
}

// MemberName returns this host's stable member name: the node's name with a random ending, as RKE2 builds it.
func MemberName(l layout.Layout, nodeName string) (string, error) {
	path := filepath.Join(l.EtcdData(), "name")
	content, err := os.ReadFile(path)
	if err == nil {
		return strings.TrimSpace(string(content)), nil
	}
	if !os.IsNotExist(err) {
		return "", err
	}
	raw := make([]byte, 4)
	if _, err = rand.Read(raw); err != nil {
		return "", err
	}
	name := nodeName + "-" + hex.EncodeToString(raw)
	return name, layout.WriteAtomic(path, []byte(name+"\n"), 0o600)
}

// AddMember admits a learner for the peer URL. What an earlier, killed join of the same host left behind (a member
// that never started, or one that is still a learner) is replaced; a voter at that address is refused.
func AddMember(ctx context.Context, c *Client, name, peerURL string) (Join, error) {
	members, err := c.Members(ctx)
	if err != nil {
		return Join{}, err
	}
	for _, member := range members {
		if !slices.Contains(member.PeerURLs, peerURL) {
			continue
		}
		if member.Name != "" && !member.IsLearner {
			return Join{}, fmt.Errorf("%w: etcd member %s is a voter at %s. "+
				"If that host is lost, delete its node first", ErrDuplicate, member.Name, peerURL)
		}
		logging.Warning("Replacing etcd member %s at %s, which an unfinished join left behind", member.ID, peerURL)
		if err = c.Remove(ctx, member.ID); err != nil {
			return Join{}, err
		}
	}
	added, members, err := c.addLearner(ctx, peerURL)
	if err != nil {
		return Join{}, err
	}
	var initial []string
	for _, member := range members {
		memberName := member.Name
		if member.ID == added.ID {
			memberName = name
		}
		for _, url := range member.PeerURLs {
			initial = append(initial, memberName+"="+url)
		}
	}
	return Join{Name: name, InitialCluster: strings.Join(initial, ",")}, nil
}

// PromoteLearners makes voters of the learners that have caught up; it reports whether learners are left.
func PromoteLearners(ctx context.Context, c *Client) (left []Member, err error) {
	members, err := c.LocalMembers(ctx)
	if err != nil {
		return nil, err
	}
	for _, member := range members {
		if !member.IsLearner {
			continue
		}
		if member.Name == "" || c.promote(ctx, member.ID) != nil {
			left = append(left, member)
		} else {
			logging.Info("Promoted etcd member %s to a voter", member.Name)
		}
	}
	return left, nil
}

// WriteConfig writes etcd's configuration file and returns its path.
func WriteConfig(l layout.Layout, c *config.Config, join Join) (string, error) {
	state := "existing"
	if join.IsNew {
		state = "new"
	}
	security := func(certificate, authority string) map[string]any {
		return map[string]any{
			"cert-file": l.TLS("etcd", certificate+".crt"), "key-file": l.TLS("etcd", certificate+".key"),
			"client-cert-auth": true, "trusted-ca-file": l.TLS("etcd", authority+".crt"),
		}
	}
	clientURL := "https://" + hostPort(c.NodeIP, "2379")
	settings := map[string]any{
		"name": join.Name, "data-dir": l.EtcdData(), "initial-cluster": join.InitialCluster,
		"initial-cluster-state": state, "initial-cluster-token": "rke2",
		"listen-client-urls": clientURL + ",https://127.0.0.1:2379", "advertise-client-urls": clientURL,
		"listen-peer-urls": PeerURL(c) + ",https://127.0.0.1:2380", "initial-advertise-peer-urls": PeerURL(c),
		"listen-metrics-urls":       "http://127.0.0.1:2381",
		"client-transport-security": security("server-client", "server-ca"),
		"peer-transport-security":   security("peer-server-client", "peer-ca"),
		// Several guests share one machine's cores: a longer election keeps a busy moment from costing the leader.
		"heartbeat-interval": 300, "election-timeout": 3000,
		"logger": "zap", "log-outputs": []string{"stderr"}, "log-level": "warn", "snapshot-count": 10000,
	}
	for _, argument := range c.EtcdArgs {
		name, value, _ := strings.Cut(strings.TrimLeft(argument, "-"), "=")
		var typed any
		if err := yaml.Unmarshal([]byte(value), &typed); err != nil {
			return "", fmt.Errorf("option \"etcd-arg\": %q: %w", argument, err)
		}
		settings[name] = typed
	}
	content, err := yaml.Marshal(settings)
	if err != nil {
		return "", err
	}
	path := filepath.Join(l.EtcdData(), "config")
	return path, layout.WriteAtomic(path, content, 0o600)
}

// SetAside moves the data of a member that the cluster has removed out of the way, so that the host can join anew.
func SetAside(l layout.Layout) error {
	target := fmt.Sprintf("%s-removed-%d", l.EtcdData(), time.Now().Unix())
	return os.Rename(l.EtcdData(), target)
}
