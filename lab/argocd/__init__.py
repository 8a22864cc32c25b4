"""The stand-in for the containers of Argo CD's pods: the real programs, on the lab's host."""
