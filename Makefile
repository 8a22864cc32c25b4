# Two commands: `make demo` shows the product at work, `make test` runs everything that CI runs.
INFRAFLOWS_LAB_HOME ?= /var/lib/infraflows-lab
SITE = $(INFRAFLOWS_LAB_HOME)/site.yaml

.PHONY: demo demo-onboard down test lint bench setup

setup:
	lab/setup.sh

demo:
	lab/setup.sh --demo
	.venv/bin/infraflows-lab up
	.venv/bin/infraflows-lab exec -- .venv/bin/infraflows setup --site "$(SITE)"
	.venv/bin/infraflows-lab exec -- .venv/bin/infraflows run bootstrap-cluster/lab --site "$(SITE)" --watch

# A team's push, its signed webhook, and the application that runs by GitOps.
demo-onboard: demo
	.venv/bin/infraflows-lab create-project
	.venv/bin/infraflows-lab exec -- .venv/bin/infraflows run connect-project/default --site "$(SITE)" --parameter environment=lab --parameter project=storefront/shop --watch
	.venv/bin/infraflows-lab push-app
	.venv/bin/infraflows-lab exec -- .venv/bin/infraflows follow onboard-app/default --site "$(SITE)"
	.venv/bin/infraflows-lab exec -- .venv/bin/infraflows follow deploy-app/default --minutes 10 --site "$(SITE)"

down:
	.venv/bin/infraflows-lab down

test:
	lab/setup.sh --tests
	tests/run.sh

lint:
	lab/setup.sh
	tests/run.sh format lint types layers

bench:
	lab/setup.sh --tests
	.venv/bin/python -m benchmarks
