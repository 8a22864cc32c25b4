// Package cli is the command line of rke2: servers, agents, and the acts of an operator on a running host.
package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"infraflows/lab/rke2/internal/agent"
	"infraflows/lab/rke2/internal/config"
	"infraflows/lab/rke2/internal/layout"
	"infraflows/lab/rke2/internal/logging"
	"infraflows/lab/rke2/internal/server"
	"infraflows/lab/rke2/internal/token"
	"infraflows/lab/rke2/internal/version"
)

const usage = `NAME:
   rke2 - Rancher Kubernetes Engine 2 (` + version.Distribution + `)

USAGE:
   rke2 [--version] COMMAND [options]

COMMANDS:
   server                                     Run management server
   agent                                      Run node agent
   etcd-snapshot save|ls|delete               Manage etcd snapshots
   certificate rotate|check                   Manage RKE2 certificates
   secrets-encrypt status|rotate-keys         Control secrets encryption and keys rotation
   token rotate|generate                      Manage tokens

OPTIONS of every command:
   --config FILE, -c FILE   (default: /etc/rancher/rke2/config.yaml; RKE2_CONFIG_FILE)
   --data-dir DIR, -d DIR   (default: /var/lib/rancher/rke2)
   and each key of the configuration file as --key VALUE
`

// command is one invocation, with the configuration that it works on.
type command struct {
	config  *config.Config
	layout  layout.Layout
	libexec string
	rest    []string // what is not an option
	own     map[string]string
}

// Main runs a command and returns the exit status.
func Main(arguments []string) int {
	if len(arguments) == 0 || arguments[0] == "help" || arguments[0] == "--help" || arguments[0] == "-h" {
		fmt.Print(usage)
		return 0
	}
	if arguments[0] == "--version" || arguments[0] == "-v" {
		fmt.Printf("rke2 version %s (%s)\ngo version %s\n", version.Version, version.Distribution, runtime.Version())
		return 0
	}
	name, arguments := arguments[0], arguments[1:]
	verbs := map[string]map[string]func(*command) error{
		"etcd-snapshot":   {"save": saveSnapshot, "ls": listSnapshots, "list": listSnapshots, "delete": deleteSnapshots},
		"certificate":     {"rotate": rotateCertificates, "check": checkCertificates},
		"secrets-encrypt": {"status": encryptStatus, "rotate-keys": rotateKeys},
		"token":           {"rotate": rotateToken, "generate": generateToken},
	}
	act := map[string]func(*command) error{"server": runServer, "agent": runAgent}[name]
	if act == nil {
		if len(arguments) == 0 || verbs[name][arguments[0]] == nil {
			fmt.Fprintf(os.Stderr, "%sNo help topic for %q\n", usage, append([]string{name}, arguments...))
			return 3
		}
		act, arguments = verbs[name][arguments[0]], arguments[1:]
	}
	parsed, err := parse(arguments)
	if err == nil {
		err = act(parsed)
	}
	if err != nil {
		logging.Error("%v", err)
		return 1
	}
	return 0
}

// ownOptions are options of the operator's commands that are no keys of the configuration.
var ownOptions = map[string]bool{"name": true, "new-token": true, "output": true, "service": true, "old-token": true}

func parse(arguments []string) (*command, error) {
	path := os.Getenv("RKE2_CONFIG_FILE")
	c := &command{own: map[string]string{}}
	var options []string
	for len(arguments) > 0 {
		argument := arguments[0]
		arguments = arguments[1:]
		name, value, isInline := cut(argument)
		isOwn := ownOptions[name] || name == "config"
		switch {
		case argument[:1] != "-":
			c.rest = append(c.rest, argument)
			continue
		case !isOwn:
			options = append(options, longForm(name, value, isInline))
			if !isInline && len(arguments) > 0 && arguments[0] != "" && arguments[0][0] != '-' && !config.IsFlag(name) {
				options[len(options)-1] += "=" + arguments[0]
				arguments = arguments[1:]
			}
			continue
		case !isInline && len(arguments) == 0:
			return nil, fmt.Errorf("flag needs an argument: %s", argument)
		case !isInline:
			value, arguments = arguments[0], arguments[1:]
		}
		if name == "config" {
			path = value
		}
		c.own[name] = value
	}
	if path == "" {
		path = layout.New("").Config()
	}
	return c, c.load(path, options)
}

func (c *command) load(path string, options []string) (err error) {
	if c.config, err = config.Load(path, options); err != nil {
		return fmt.Errorf("invalid configuration:\n%w", err)
	}
	if c.config.Debug {
		logging.EnableDebug()
	}
	c.layout = layout.New(c.config.DataDir)
	c.libexec, err = layout.Libexec()
	return err
}

func cut(argument string) (name, value string, isInline bool) {
	for index, char := range argument {
		if char == '=' {
			name, value, isInline = argument[:index], argument[index+1:], true
			break
		}
	}
	if !isInline {
		name = argument
	}
	for len(name) > 0 && name[0] == '-' {
		name = name[1:]
	}
	short := map[string]string{"c": "config", "d": "data-dir", "t": "token", "s": "server", "o": "output"}
	if long, isShort := short[name]; isShort {
		name = long
	}
	return name, value, isInline
}

func longForm(name, value string, isInline bool) string {
	if isInline {
		return "--" + name + "=" + value
	}
	return "--" + name
}

func signals() (context.Context, context.CancelFunc) {
	return signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
}

func (c *command) announce() error {
	if len(c.rest) > 0 {
		return fmt.Errorf("unexpected arguments %q", c.rest)
	}
	for _, name := range c.config.Accepted {
		logging.Info("Option %q is accepted without effect in the %s", name, version.Distribution)
	}
	return nil
}

func runServer(c *command) error {
	if err := c.announce(); err != nil {
		return err
	}
	ctx, cancel := signals()
	defer cancel()
	err := server.New(c.config, c.layout, c.libexec).Run(ctx)
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

func runAgent(c *command) error {
	if err := c.announce(); err != nil {
		return err
	}
	if c.config.Server == "" {
		return fmt.Errorf("--server is required")
	}
	given, err := token.Parse(c.config.Token, token.NodeUser)
	if err != nil {
		return err
	}
	if err = server.CheckKernel(c.config); err != nil {
		return err
	}
	logging.Info("Starting rke2 agent %s (%s)", version.Version, version.Distribution)
	if err = server.LinkBinaries(c.layout, c.libexec); err != nil {
		return err
	}
	ctx, cancel := signals()
	defer cancel()
	local := &agent.Agent{Config: c.config, Layout: c.layout, Libexec: c.libexec, Token: given}
	if err = local.Run(ctx); errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}
