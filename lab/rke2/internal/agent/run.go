package agent

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"time"

	"infraflows/lab/rke2/internal/access"
	"infraflows/lab/rke2/internal/balancer"
	"infraflows/lab/rke2/internal/logging"
	"infraflows/lab/rke2/internal/sdnotify"
)

const refreshServers = 5 * time.Second

// Run is `rke2 agent`: load balancers first, so that kwok survives the loss of any one server.
func (a *Agent) Run(ctx context.Context) error {
	configured := a.Config.Server
	host, port, err := hostOf(configured)
	if err != nil {
		return err
	}
	supervisors, err := balancer.Start(ctx, "127.0.0.1:6444", join(host, port),
		a.Layout.Agent("etc", "rke2-agent-load-balancer.json"))
	if err != nil {
		return err
	}
	apiServers, err := balancer.Start(ctx, "127.0.0.1:6443", join(host, "6443"),
		a.Layout.Agent("etc", "rke2-api-server-agent-load-balancer.json"))
	if err != nil {
		return err
	}
	a.Server = "https://127.0.0.1:6444"
	if err = a.Start(ctx); err != nil {
		return err
	}
	logging.Info("rke2 agent is up and running")
	if err = sdnotify.Send("READY=1"); err != nil {
		logging.Warning("Unable to tell systemd that the agent is ready: %v", err)
	}
	a.followServers(ctx, supervisors, apiServers)
	_ = sdnotify.Send("STOPPING=1")
	a.Stop()
	return nil
}

// followServers keeps the load balancers' lists equal to the API servers that the cluster has.
func (a *Agent) followServers(ctx context.Context, supervisors, apiServers *balancer.Balancer) {
	var server *access.Access
	for ctx.Err() == nil {
		var err error
		if server == nil {
			server, err = access.Connect(ctx, a.Server, a.Token)
		}
		if err == nil {
			err = refresh(ctx, server, supervisors, apiServers)
		}
		if err != nil && ctx.Err() == nil {
			server = nil
			logging.Debug("Unable to refresh the list of servers: %v", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(refreshServers):
		}
	}
}

func refresh(ctx context.Context, server *access.Access, supervisors, apiServers *balancer.Balancer) error {
	content, err := server.Call(ctx, http.MethodGet, "/v1-rke2/apiservers", nil, nil)
	if err != nil {
		return err
	}
	var addresses []string
	if err = json.Unmarshal(content, &addresses); err != nil {
		return err
	}
	var hosts []string
	for _, address := range addresses {
		host, _, err := net.SplitHostPort(address)
		if err != nil {
			return err
		}
		hosts = append(hosts, net.JoinHostPort(host, "9345"))
	}
	apiServers.SetServers(addresses)
	supervisors.SetServers(hosts)
	return nil
}
