# make help lists the targets.

# The flags of xcaddy, so that make xcaddy finds Caddy compiled, without the
# storage backends for Smallstep that nobody configures here.
TAGS     := nobadger,nomysql,nopgx
RELEASE  := CGO_ENABLED=0 go build -trimpath -tags $(TAGS)
LDFLAGS  := -s -w $(if $(VERSION),-X main.version=$(VERSION))

GOTEST   := CGO_ENABLED=1 go test -race -shuffle=on
TIMEOUT  ?= 20m
PKG      ?= ./...
RUN      ?= .
COUNT    ?= 10
FUZZTIME ?= 60s
BENCH    ?=

AGENT_MAX_MB := 15
LINTER   := .cache/golangci-lint
OPA      := .cache/testbin/opa

.DEFAULT_GOAL := build
.PHONY: help build run deps test race bench bench-peers lint fuzz golden xcaddy check clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' $(MAKEFILE_LIST) | expand -t 14

build: ## build bin/nowconnect and bin/nowconnect-agent
	$(RELEASE) -ldflags '$(LDFLAGS)' -o bin/ ./cmd/nowconnect ./cmd/nowconnect-agent
	@size=$$(wc -c < bin/nowconnect-agent); test $$size -le $$(($(AGENT_MAX_MB) * 1000000)) || \
		{ echo "bin/nowconnect-agent has $$size bytes, more than $(AGENT_MAX_MB) MB" >&2; exit 1; }

run: build ## start hub, agent and a small directory, and try them
	bin/nowconnect demo

deps: ## install what the tests need (Debian)
	@scripts/deps.sh

# Tests run it as a PDP. A module of its own, as that of the tools; by flags
# that share what Caddy has in common with it. Tests that find none build it.
$(OPA): tools/opa/go.mod tools/opa/go.sum
	cd tools/opa && CGO_ENABLED=0 go build -trimpath -tags opa_no_oci -ldflags '-s -w' -o ../../$@ github.com/open-policy-agent/opa

test: deps $(OPA) ## run all tests against real peers, with the race detector
	$(GOTEST) -timeout $(TIMEOUT) ./...
	CGO_ENABLED=0 go test -trimpath -run 'Allocate' ./internal/... # the race detector allocates
	cd tools && go test ./...
	cd bench && CGO_ENABLED=0 go test -trimpath -tags $(TAGS) ./...

race: deps $(OPA) ## repeat tests to hunt for races: PKG=./internal/hub RUN=Drain COUNT=10
	$(GOTEST) -timeout $(TIMEOUT) -run '$(RUN)' -count $(COUNT) $(PKG)

bench: build bench-build ## measure against direct, plain TLS, yamux and smux: BENCH='-short'
	bin/ncbench -markdown bin/bench.md -json bin/bench.json $(BENCH)

bench-peers: build bench-build ## the same with other tunnels that are on PATH
	bin/ncbench -systems all,peers -markdown bin/bench-peers.md -json bin/bench-peers.json $(BENCH)

.PHONY: bench-build
bench-build:
	cd bench && $(RELEASE) -ldflags '$(LDFLAGS)' -o ../bin/ ./cmd/...

# The tool is a module of its own, so that its dependencies are not ours.
$(LINTER): tools/go.mod
	cd tools && CGO_ENABLED=0 go build -trimpath -o ../$@ github.com/golangci/golangci-lint/v2/cmd/golangci-lint

lint: $(LINTER) ## run the linters of .golangci.yml
	@for dir in . tools bench; do echo "lint: $$dir"; \
		(cd $$dir && CGO_ENABLED=0 GOFLAGS="$$GOFLAGS -trimpath" $(CURDIR)/$(LINTER) run --allow-parallel-runners ./...) || failed=1; \
	done; test -z "$$failed"

fuzz: ## run every fuzz target for FUZZTIME (60s)
	scripts/fuzz.sh $(FUZZTIME)

golden: ## write the golden files anew; read the diff before you commit
	go test ./caddyfile ./internal/wire -update

xcaddy: ## build Caddy from xcaddy.json with xcaddy, and check its modules
	cd tools && go run ./xcaddybuild -manifest ../xcaddy.json

check: build lint test xcaddy ## all that .ci/run does, but the fuzzing

clean: ## remove what was built
	rm -rf bin .cache
