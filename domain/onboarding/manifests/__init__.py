"""From a tenant to its Kubernetes objects, as data: what it gets, and what it runs.

`tenancy` is applied by the platform (namespace, quota, network policies, rights) and `workload` is
committed to the GitOps repository (`kustomize`). Neither reads anything: the same tenant always
gives the same objects, which is what the policies judge and what drift is measured against.
"""
