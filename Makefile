# Thin on purpose: the logic lives in Rust (interop-tests) and in one script each.

.PHONY: demo tour time-demo release reproducible older cross image image-test packages test screenshots interop bench bench-cni bench-agent interruptions chaos power-cuts edgecore cloudcore containerd soak fuzz install

# From nothing to pods that ping through our own tunnels.
demo: install
	.ci/lab demo

# The same network, shown step by step, with a map; it ends at a prompt in it.
tour: install
	.ci/lab tour

# How long `make demo` takes from nothing.
time-demo:
	.ci/time-demo

# The programs that users get, in target/release.
release:
	.ci/release

# Whether two builds of the last commit, in two directories, give the same bytes.
reproducible:
	.ci/reproducible

# The programs of the release whose state the tests have, in target/older; with them the tests mix them with the present ones.
older:
	.ci/older

# The programs for aarch64 and armv7, with Debian's compilers, started under qemu-user.
cross:
	.ci/install test
	.ci/cross

# The image that the chart names, in target/image/edge-cni.tar, with static programs.
image:
	.ci/release --static
	deploy/image

# Whether the programs of that image run from it in containerd, as the manifests start them.
image-test: image
	.ci/install test
	EDGE_IMAGE_PROGRAMS=$(CURDIR)/target/static cargo test --workspace --locked --test deploy from_the_image

# The Debian packages, in target/packages.
packages: release
	deploy/debian/build target/release target/packages

# Everything: formatting, lints, licences, unit tests, kernel tests, simulations, lab scenarios, the demo.
test:
	.ci/install test
	.ci/test

# The pictures of the page in docs.
screenshots:
	.ci/install test
	EDGE_SCREENSHOTS=$(CURDIR)/docs cargo test --locked -p edge-controller --test api in_the_light_and_in_the_dark

# The lab scenarios alone, against real kernels, strongSwan and libreswan, the table of docs/interop.md with their results, and the
# table of interruptions.
interop: install
	status=0; .ci/lab run || status=$$?; .ci/lab interruptions || status=$$?; exit $$status

# What pings through a tunnel lose when agents, links or SAs go, beside what is wanted.
interruptions: install
	.ci/lab interruptions

# The simulation of IKE networks under faults: SEEDS runs from the seed SEED on.
SEED ?= 0
SEEDS ?= 20000
soak:
	SEED=$(SEED) SEEDS=$(SEEDS) cargo test --locked -p edge-ike --test simulation faults

# Random events in the demo's network for MINUTES from the seed SEED on, with its claims checked after each round.
chaos: install
	.ci/lab chaos --minutes $(MINUTES) --seed $(SEED)

# KubeEdge's edgecore, once per machine, in half an hour of CPU time; with it the plugin's kernel tests run their pods under edgecore too.
edgecore: install
	cargo run --quiet --locked -p interop-tests -- edgecore

# KubeEdge's cloudcore, once per machine, in half an hour of CPU time; with it the tests join edgecore to a real API server.
cloudcore: install
	cargo run --quiet --locked -p interop-tests -- cloudcore

# containerd 1.7 and 2.1, once per machine, in 20 minutes of CPU time; with them the tests run under them too, not only Debian's.
containerd: install
	cargo run --quiet --locked -p interop-tests -- containerd

# The lab's kernel is killed CUTS times while the plugin runs, with its leases on an ext4 disk, from the seed SEED on.
CUTS ?= 50
power-cuts: install
	.ci/lab power-cuts --cuts $(CUTS) --seed $(SEED)

# libFuzzer on each target of ike/fuzz, MINUTES each. Needs a nightly compiler and cargo-fuzz.
MINUTES ?= 5
fuzz:
	for target in message payloads reassembly endpoint session selectors certificates; do \
		(cd ike && cargo +nightly fuzz run $$target -- -max_total_time=$$(($(MINUTES) * 60))) || exit 1; \
	done

bench: install
	.ci/bench

# Calls of the plugin, beside bridge with host-local and a floor.
bench-cni:
	.ci/bench-cni

# The agent with many peers, beside charon: `make bench-agent N="100 1000 3000"`.
bench-agent: install
	.ci/bench-agent $(addprefix tunnels-,$(N))

install:
	.ci/install
