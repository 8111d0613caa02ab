# make check test is what must pass before a change lands; .ci/run runs both.

# Judges with dependencies of their own are modules of their own.
JUDGES := $(dir $(wildcard test/*/go.mod bench/*/go.mod))

# How long each fuzz target runs.
FUZZTIME ?= 20s

.PHONY: build check test fuzz soak bench pgo microbench generate vet staticcheck floors generate-clean tidy

build:
	go build -o weft ./cmd/weft

check: vet staticcheck floors generate-clean tidy

# The end-to-end tests under test/ drive the built program, which the race detector
# would slow down and not see into; all others run with it.
test:
	go test -race -shuffle=on $$(go list ./... | grep -v /weft/test/)
	go test -shuffle=on ./test/...
	@set -e; for dir in $(JUDGES); do (set -x; cd $$dir && go test -race -shuffle=on ./...); done

fuzz:
	@set -e; for file in $$(git ls-files '*_test.go'); do \
		for target in $$(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' $$file); do \
			(set -x; cd $$(dirname $$file) && go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) .); \
		done; done

# How long clients, servers and proxies are killed, stalled and reset at random;
# test/soak/doc.go says what else can be set.
SOAK ?= 2m

# How long three servers are killed, stopped and cut off at random, before what their
# clients saw is checked; test/cluster/doc.go says what else can be set.
CLUSTER_SOAK ?= 3m

soak:
	cd test/soak && SOAK=$(SOAK) go test -count=1 -timeout 0 -run TestSoak -v .
	cd test/cluster && CLUSTER_SOAK=$(CLUSTER_SOAK) go test -count=1 -timeout 0 -run TestSoak -v .

# weft beside its peers; bench/README.md says how to install them.
bench:
	go run ./bench

# The compiler's profile of what a proxy does all day. Take it on a quiet machine,
# when the data plane has changed much.
pgo:
	go test -run '^$$' -bench '^BenchmarkHop' -benchtime 10s -cpuprofile cmd/weft/default.pgo -o /dev/null ./proxy

microbench:
	go test -run '^$$' -bench . -benchmem ./...

generate:
	go generate ./...

vet:
	@test -z "$$(gofmt -l .)" || { gofmt -d .; exit 1; }
	go vet ./...
	@set -e; for dir in $(JUDGES); do (set -x; cd $$dir && go vet ./...); done

staticcheck:
	go tool staticcheck ./...
	@set -e; tool=$$(go tool -n staticcheck); for dir in $(JUDGES); do (set -x; cd $$dir && $$tool ./...); done

floors:
	go test ./internal/floors

# What is generated is committed; generating it again must change nothing.
generate-clean:
	@set -e; before=$$(git status --porcelain; git diff); \
	(set -x; go generate ./...); \
	test "$$before" = "$$(git status --porcelain; git diff)" || { \
		echo 'generated files are not what their sources say: run make generate and commit'; git status --short; exit 1; }

tidy:
	go mod tidy -diff
	@set -e; for dir in $(JUDGES); do (set -x; cd $$dir && go mod tidy -diff); done
