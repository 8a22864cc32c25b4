// Pins what the lab builds; the packages to build are in lab/toolchain/recipes.py.
module infraflows.internal/lab/toolchain/etcd

go 1.26.0

require (
	go.etcd.io/etcd/etcdctl/v3 v3.6.16
	go.etcd.io/etcd/server/v3 v3.6.16
)
