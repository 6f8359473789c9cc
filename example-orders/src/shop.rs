//! The running shop: its database, its store, its app.

use std::{convert::Infallible, path::Path};

use annals::{
    Annals, App, BoxError, Config,
    embedded::{self, Database},
};

use crate::{
    order::Order,
    read_models::{CustomerSpend, DepartmentSales, OpenOrder, OrderSearch},
    watch, with_causes,
};

/// The running shop.
pub(crate) struct Shop {
    pub(crate) app: App,
    database: Database,
}

impl Shop {
    /// Opens the shop on the database of `DATABASE_URL`, or on a private server in `data_dir`. Dropped half-way, it
    /// leaves no server behind.
    ///
    /// # Errors
    /// There is no server, or it cannot be used; each error says what to do.
    pub(crate) async fn open(data_dir: &Path) -> Result<Self, BoxError> {
        let options = embedded::Options { data_dir: data_dir.into(), ..Default::default() };
        let database = embedded::database(options).await?;
        match start(database.url()).await {
            Ok(app) => Ok(Self { app, database }),
            Err(error) => {
                let given = database.server().is_none();
                database.close().await?;
                let text = with_causes(&*error);
                Err(match given {
                    true => format!("cannot use the database that DATABASE_URL names: {text}; correct the variable, or unset it for a private PostgreSQL").into(),
                    false => error,
                })
            }
        }
    }

    /// Where the database comes from, in a line.
    pub(crate) fn origin(&self) -> &str {
        self.database.origin()
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

/// Connects to the database at `url` and starts the app on it.
///
/// # Errors
/// The database does not answer, or the store in it is not one that this program can use.
pub(crate) async fn start(url: &str) -> Result<App, BoxError> {
    let mut config = Config::new(url);
    config.application_name = "example-orders".into();
    let app = Annals::connect(config)
        .await?
        .app()
        .aggregate::<Order>()
        .view::<CustomerSpend>()
        .view::<DepartmentSales>()
        .view::<OpenOrder>()
        .projector(OrderSearch)
        .start()
        .await?;
    Ok(app)
}
