# `just check` is what CI does.
check:
    bash .ci/run

# Format, and mend what clippy can.
fix:
    cargo fmt --all
    cargo clippy --workspace --all-targets --all-features --fix --allow-dirty --allow-staged

# The ordering stress, for as many seconds as you like: millions of events in ten minutes.
marker seconds="600":
    ANNALS_MARKER_SECONDS={{seconds}} cargo test --release -p annals-tests marker -- --nocapture

# Every case beside its limit: appends, commands, loads, read models, the import.
bench *args:
    cargo run --release -p bench -- {{args}}

# The same work by the packages that one would pick instead; bench/peers/README.md.
peers *args:
    cargo run --release --manifest-path bench/peers/Cargo.toml -- {{args}}

# Licences, bans, sources.
deny:
    cargo deny check licenses bans sources

# The crate as it would be published, built by itself.
package:
    cargo package -p annals --allow-dirty
