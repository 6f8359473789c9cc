//! Looks after the server while there is work.

use std::{convert::Infallible, time::Duration};

use annals::{BoxError, embedded::Database};
use sqlx::{Connection, PgConnection};
use tokio::time::{sleep, timeout};

use crate::{say::note, with_causes};

const PAUSE: Duration = Duration::from_millis(500);

/// How long the server may take to answer a question that is none.
const LIMIT: Duration = Duration::from_secs(3);

/// Says when the server cannot be reached, and when it answers again; one that is private and has ended is started again.
///
/// The store repeats what can be repeated, and is silent for as long as its deadlines allow. A person wants to know sooner.
pub(crate) async fn watch(database: &Database) -> Infallible {
    let (mut connection, mut away, mut hope) = (None, false, true);
    loop {
        match ask(&mut connection, database.url()).await {
            Ok(()) if away => {
                note("PostgreSQL answers again");
                (away, hope) = (false, true);
            }
            Ok(()) => {}
            Err(error) => {
                if !away {
                    note(format_args!("PostgreSQL cannot be reached, waiting for it: {}", with_causes(&*error)));
                }
                away = true;
                hope = hope && revive(database).await;
            }
        }
        sleep(PAUSE).await;
    }
}

async fn ask(connection: &mut Option<PgConnection>, url: &str) -> Result<(), BoxError> {
    let asking = async {
        // It goes back only if it answers: one that does not is closed.
        let mut open = match connection.take() {
            Some(open) => open,
            None => PgConnection::connect(url).await?,
        };
        open.ping().await?;
        *connection = Some(open);
        Ok(())
    };
    let late = |_| format!("no answer within {} s", LIMIT.as_secs());
    timeout(LIMIT, asking).await.map_err(late)?
}

/// Starts the private server again if it has ended. Returns whether it is worth another try.
async fn revive(database: &Database) -> bool {
    let Some(server) = database.server() else { return false };
    match server.revive().await {
        Ok(false) => {}
        Ok(true) => note("the private PostgreSQL had ended and was started again"),
        Err(error) => {
            note(format_args!("the private PostgreSQL cannot be started again: {}", with_causes(&error)));
            return false;
        }
    }
    true
}
