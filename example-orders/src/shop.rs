//! The running shop: its database, its store, its app.

use std::{convert::Infallible, path::Path, pin::pin, process::ExitCode};

use annals::{
    Aggregate, Annals, App, BoxError, Builder, Config, Follow, Id, ReadStream, StoreError, StreamId,
    embedded::{self, Database},
};
use futures::TryStreamExt;

use crate::{
    account::Account,
    order::Order,
    read_models::{self, CustomerSpend, DepartmentSales, OpenOrder, OrderSearch},
    sagas::Sagas,
    signals::INTERRUPTED,
    stock::Stock,
    watch, with_causes,
};

/// What a process does about the read models.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// It runs them, together with whoever else does.
    Shop,
    /// It runs them only if nobody else does: looking after them moves nothing.
    Operator,
    /// It only looks: what it shows is what others run.
    Onlooker,
}

impl Role {
    /// What the process answers when it was stopped. Who was to see to something must not take a stop for it.
    pub(crate) fn stopped(self) -> ExitCode {
        match self {
            Self::Shop | Self::Onlooker => ExitCode::SUCCESS,
            Self::Operator => ExitCode::from(INTERRUPTED),
        }
    }
}

/// The running shop.
pub(crate) struct Shop {
    pub(crate) app: App,
    /// Whether this process runs read models.
    pub(crate) runs: bool,
    database: Database,
}

impl Shop {
    /// Opens the shop on the database of `DATABASE_URL`, or on a private server in `data_dir`. Dropped half-way, it
    /// leaves no server behind.
    ///
    /// # Errors
    /// There is no server, or it cannot be used; each error says what to do.
    pub(crate) async fn open(data_dir: &Path, role: Role, sagas: Option<&Sagas>) -> Result<Self, BoxError> {
        let database = database(data_dir).await?;
        match start(database.url(), role, sagas).await {
            Ok((app, runs)) => Ok(Self { app, runs, database }),
            Err(error) => {
                let error = cannot_use(&database, error);
                database.close().await?;
                Err(error)
            }
        }
    }

    /// Where the database comes from, in a line.
    pub(crate) fn origin(&self) -> &str {
        self.database.origin()
    }

    /// Where the database is.
    pub(crate) fn url(&self) -> &str {
        self.database.url()
    }

    /// Looks after the server for as long as it is awaited, see [`watch`](watch::watch).
    pub(crate) async fn watch(&self) -> Infallible {
        watch::watch(&self.database).await
    }

    /// Ends the commands and followers that are under way, then leaves the server.
    ///
    /// # Errors
    /// The private server does not stop.
    pub(crate) async fn close(self) -> Result<(), BoxError> {
        self.app.shutdown().await;
        Ok(self.database.close().await?)
    }
}

/// Connects to the database at `url` and starts the app on it, with its sagas if they are given: only then they begin and go on
/// here. Returns whether it runs read models, too.
///
/// # Errors
/// The database does not answer, or the store in it is not one that this program can use.
pub(crate) async fn start(url: &str, role: Role, sagas: Option<&Sagas>) -> Result<(App, bool), BoxError> {
    let store = connect(url, true).await?;
    let runs = match role {
        Role::Shop => true,
        Role::Operator => !is_run_elsewhere(&store).await?,
        Role::Onlooker => false,
    };
    let mut follow: Vec<&str> = if runs { read_models::ALL.iter().map(|(name, _)| *name).collect() } else { vec![] };
    let mut app = app(&store);
    if let Some(sagas) = sagas {
        app = sagas.register(app);
        follow.extend(sagas.runs);
    }
    let follow = follow.into_iter().map(Into::into).collect();
    let app = app.follow(Follow::Only(follow)).start().await?;
    Ok((app, runs))
}

/// Everything that the shop consists of.
pub(crate) fn app(store: &Annals) -> Builder {
    store
        .app()
        .aggregate::<Order>()
        .aggregate::<Stock>()
        .aggregate::<Account>()
        .view::<CustomerSpend>()
        .view::<DepartmentSales>()
        .view::<OpenOrder>()
        .projector(OrderSearch)
}

/// Connects to the store in the database at `url`, which is made and migrated if `migrate` says so.
///
/// # Errors
/// The database does not answer, or the store in it is not one that this program can use.
pub(crate) async fn connect(url: &str, migrate: bool) -> Result<Annals, StoreError> {
    let application_name = "example-orders".into();
    Annals::connect(Config { application_name, migrate, ..Config::new(url) }).await
}

/// The database of `DATABASE_URL`, or of a private server in `data_dir`.
///
/// # Errors
/// There is no server; the error says what to do.
pub(crate) async fn database(data_dir: &Path) -> Result<Database, BoxError> {
    let options = embedded::Options { data_dir: data_dir.into(), ..Default::default() };
    Ok(embedded::database(options).await?)
}

/// Why `database` cannot be used, with what to do if it was given.
pub(crate) fn cannot_use(database: &Database, error: BoxError) -> BoxError {
    if database.server().is_some() {
        return error;
    }
    let text = with_causes(&*error);
    format!("cannot use the database that DATABASE_URL names: {text}; correct the variable, or unset it for a private PostgreSQL").into()
}

/// Whether other processes that are alive run every read model, in this build's version. In doubt they do not: two may run
/// the same ones at any time.
async fn is_run_elsewhere(store: &Annals) -> Result<bool, StoreError> {
    let lag = store.followers().lag().await?;
    let is_run = |(name, version): &(&str, u32)| {
        let mut live = lag.iter().filter(|lag| lag.purpose == "live" && lag.follower == *name).peekable();
        live.peek().is_some() && live.all(|lag| lag.version == *version as i32 && lag.state != "unowned")
    };
    let mut owners = lag.iter().filter_map(|lag| lag.owner.as_ref()).peekable();
    Ok(read_models::ALL.iter().all(is_run) && owners.peek().is_some() && owners.all(|(_, pid)| is_there(*pid)))
}

/// Whether a process that is alive runs the saga `name`, as far as is known.
///
/// # Errors
/// Postgres cannot be asked.
pub(crate) async fn is_run(store: &Annals, name: &str) -> Result<bool, StoreError> {
    let lag = store.followers().lag().await?;
    let mut owners = lag.iter().filter(|lag| lag.follower == name).filter_map(|lag| lag.owner.as_ref());
    Ok(owners.any(|(_, pid)| is_there(*pid)))
}

/// An aggregate as its events make it.
///
/// # Errors
/// Its stream cannot be read.
pub(crate) async fn fold<A: Aggregate>(app: &App, id: impl Into<Id>) -> Result<A, BoxError> {
    let stream = StreamId::of(A::TYPE, id)?;
    let mut events = pin!(app.store().read_stream(&stream, ReadStream::default()));
    let mut state = A::default();
    while let Some(stored) = events.try_next().await? {
        state.apply(&app.decode::<A::Event>(&stored)?.event);
    }
    Ok(state)
}

/// Whether a process is there: one that was killed counts as an owner for a few seconds more. One of another machine is not.
fn is_there(pid: i32) -> bool {
    let processes = Path::new("/proc");
    !processes.join("self").exists() || processes.join(pid.to_string()).exists()
}
