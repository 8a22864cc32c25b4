// Command rke2 is the lab's stand-in for RKE2: its surface around the real etcd and Kubernetes control plane.
package main

import (
	"os"

	"infraflows/lab/rke2/internal/cli"
)

func main() { os.Exit(cli.Main(os.Args[1:])) }
