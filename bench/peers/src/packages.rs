//! Who takes part.

mod cqrs_es;
mod disintegrate;
mod esrs;
mod evento;
mod ours;

use annals::BoxError;

use crate::{
    measure::Figures,
    pgbench::Pgbench,
    script::Script,
    server::Server,
    work::{self, Work},
};

/// What a package did with a case.
pub(crate) enum Outcome {
    Measured(Figures),
    /// Something to measure, and what was wrong with it.
    Flawed(Figures, String),
    /// Nothing to measure, and why, in a word.
    Absent(String),
}

/// A package, its name in the tables, and its version.
pub(crate) struct Package {
    name: &'static str,
    version: String,
    kind: Kind,
}

enum Kind {
    Ours,
    Pgbench(Pgbench),
    CqrsEs,
    Esrs,
    Disintegrate,
    Evento,
    Script(Script),
    /// Cannot run here, and why.
    Missing(String),
}

impl Package {
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    /// What the others are compared with.
    pub(crate) fn is_ours(&self) -> bool {
        matches!(self.kind, Kind::Ours)
    }

    /// What everybody is compared with.
    pub(crate) fn is_limit(&self) -> bool {
        matches!(self.kind, Kind::Pgbench(_))
    }
}

/// Everybody who takes part.
pub(crate) struct Field(Vec<Package>);

impl Field {
    /// Annals, pgbench and every peer, or those of `only`; what has to be installed for them is installed here.
    pub(crate) async fn assemble(server: &Server, only: &[String]) -> Result<Self, BoxError> {
        let mut packages = vec![
            Package { name: "annals", version: locked("annals"), kind: Kind::Ours },
            Package { name: "pgbench", version: server_version(server).await?, kind: Kind::Pgbench(Pgbench::find()?) },
        ];
        for name in PEERS.iter().filter(|name| only.is_empty() || only.iter().any(|wanted| wanted == *name)) {
            let package = peer(server, name).await?;
            if let Kind::Missing(why) = &package.kind {
                println!("{} {} is left out: {why}", package.name, package.version);
            }
            packages.push(package);
        }
        if packages.len() == 2 {
            return Err(format!("no such package; there are {}", PEERS.join(", ")).into());
        }
        Ok(Self(packages))
    }

    pub(crate) fn packages(&self) -> &[Package] {
        &self.0
    }

    /// Does `work` with `package` in a new database.
    pub(crate) async fn run(
        &self,
        package: &Package,
        server: &Server,
        work: Work,
        seconds: u64,
    ) -> Result<Outcome, BoxError> {
        match &package.kind {
            Kind::Ours => work::run::<ours::Ours>(server, work, seconds).await,
            Kind::CqrsEs => work::run::<cqrs_es::CqrsEs>(server, work, seconds).await,
            Kind::Esrs => work::run::<esrs::Esrs>(server, work, seconds).await,
            Kind::Disintegrate => work::run::<disintegrate::Disintegrate>(server, work, seconds).await,
            Kind::Evento => work::run::<evento::Evento>(server, work, seconds).await,
            Kind::Script(script) => script.run(server, work, seconds).await,
            Kind::Missing(why) => Ok(Outcome::Absent(format!("left out: {why}"))),
            Kind::Pgbench(pgbench) => match work {
                Work::Append { events, callers } => {
                    Ok(Outcome::Measured(pgbench.run(server, events, callers, seconds).await?))
                }
                Work::Command { callers } => Ok(Outcome::Measured(pgbench.run(server, 1, callers, seconds).await?)),
                _ => Ok(Outcome::Absent("only writes".into())),
            },
        }
    }
}

const PEERS: &[&str] =
    &["postgres-es", "esrs", "disintegrate-postgres", "evento", "emmett-postgresql", "eventsourcing"];

async fn peer(server: &Server, name: &'static str) -> Result<Package, BoxError> {
    let kind = match name {
        "postgres-es" => Kind::CqrsEs,
        "esrs" => Kind::Esrs,
        "evento" => Kind::Evento,
        // Its own installation says 0xFFFFFFFF, which is an error before 16. Its schema is its own: it is not mended here.
        "disintegrate-postgres" => match server_version(server).await? {
            version if major(&version) < 16 => {
                Kind::Missing(format!("it needs PostgreSQL 16 to install itself, and this is {version}"))
            }
            _ => Kind::Disintegrate,
        },
        _ => {
            let script = if name == "eventsourcing" { Script::python().await } else { Script::node().await };
            let version = crate::script::version(name);
            let kind = script.map_or_else(|error| Kind::Missing(error.to_string()), Kind::Script);
            return Ok(Package { name, version, kind });
        }
    };
    Ok(Package { name, version: locked(name), kind })
}

/// The version of a crate that this program was built with.
fn locked(name: &str) -> String {
    let lock = include_str!("../Cargo.lock");
    let found = lock.split_once(&format!("name = \"{name}\"\nversion = \""));
    found.and_then(|(_, rest)| rest.split('"').next()).unwrap_or("?").into()
}

async fn server_version(server: &Server) -> Result<String, BoxError> {
    let version: String = sqlx::query_scalar("show server_version").fetch_one(&mut server.connect().await?).await?;
    Ok(version.split_whitespace().next().unwrap_or_default().into())
}

fn major(version: &str) -> u32 {
    version.split('.').next().and_then(|major| major.parse().ok()).unwrap_or_default()
}
