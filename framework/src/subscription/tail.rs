//! The tail: one reader of the log for all followers of the process.

use std::{sync::Arc, time::Duration};

use sqlx::PgConnection;
use tokio::{
    sync::{Notify, Semaphore, watch},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{failure::Failure, recent::Recent, wake_up};
use crate::{
    Position,
    error::StoreError,
    store::{ReadLog, Store, connect, horizon, within},
};

/// The first pause before another look at a position that somebody in flight holds.
const SOON: Duration = Duration::from_millis(1);

/// How far followers may read. `epoch` counts the connections of the tail: after a new one, what a follower remembers
/// above its committed checkpoint is void, for a crash may have taken the sequence back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Frontier {
    pub(crate) epoch: u64,
    pub(crate) safe: Position,
}

/// The reading end of the tail, for one process.
pub(crate) struct Tail {
    pub(crate) frontier: watch::Receiver<Frontier>,
    pub(crate) recent: Arc<Recent>,
    /// A follower works when it has one: so many connections there are, and a long batch of one is no failure of another.
    pub(crate) turns: Arc<Semaphore>,
    /// Why it cannot read now: then no follower hears of anything, however well it is.
    pub(crate) trouble: watch::Receiver<Option<String>>,
}

impl Tail {
    /// Starts reading, until `stop`.
    pub(crate) fn start(store: Store, stop: CancellationToken) -> Self {
        let (sender, frontier) = watch::channel(Frontier::default());
        let (trouble_sender, trouble) = watch::channel(None);
        let recent = Arc::new(Recent::default());
        let woken = Arc::new(Notify::new());
        tokio::spawn(wake_up::listen(store.clone(), woken.clone(), stop.clone()));
        let turns = Arc::new(Semaphore::new(store.config().follower_connections.max(1) as usize));
        let reader = Reader { store, recent: recent.clone(), frontier: sender, trouble: trouble_sender, woken };
        tokio::spawn(async move {
            tokio::select! {
                () = reader.run() => {}
                () = stop.cancelled() => {}
            }
        });
        Self { frontier, recent, turns, trouble }
    }
}

struct Reader {
    store: Store,
    recent: Arc<Recent>,
    frontier: watch::Sender<Frontier>,
    trouble: watch::Sender<Option<String>>,
    woken: Arc<Notify>,
}

impl Reader {
    async fn run(self) {
        const SHORTEST: Duration = Duration::from_millis(50);
        let mut pause = SHORTEST;
        loop {
            let epoch = self.frontier.borrow().epoch;
            let error = match self.follow().await {
                Ok(never) => never,
                Err(error) => error,
            };
            tracing::warn!(%error, "the tail of the log lost its connection; followers start again from their checkpoints");
            self.trouble.send_replace(Some(format!("the log cannot be read: {}", Failure::from(error).text())));
            // A connection that worked is not the one before it that did not.
            pause =
                if self.frontier.borrow().epoch == epoch { (pause * 2).min(Duration::from_secs(2)) } else { SHORTEST };
            sleep(pause).await;
        }
    }

    /// Reads on one connection until it fails.
    async fn follow(&self) -> Result<StoreError, StoreError> {
        let inner = &self.store.inner;
        let mut conn = connect(&inner.options, inner.config.connect_deadline).await?;
        let mut appended = inner.appender.appended.subscribe();
        let mut read = Position::START;
        let mut first = true;
        let mut held = SOON;
        loop {
            let asking = horizon(&mut conn, &inner.sql);
            let horizon = within(inner.config.read_deadline, "read the safe position", asking).await??;
            if first {
                first = false;
                read = horizon.safe;
                let epoch = self.frontier.borrow().epoch + 1;
                self.recent.restart(epoch, read);
                self.frontier.send_replace(Frontier { epoch, safe: read });
                self.trouble.send_replace(None);
            }
            let safe = horizon.safe.max(read);
            let moved = safe > read;
            while read < safe {
                read = self.read_page(&mut conn, read, safe).await?;
                self.frontier.send_modify(|frontier| frontier.safe = read);
            }
            // Somebody is in flight: look again soon, and less often the longer it takes.
            let in_flight = horizon.safe < horizon.drawn;
            held = if in_flight && !moved { (held * 2).min(inner.config.poll_interval) } else { SOON };
            let interval = if in_flight { held } else { inner.config.poll_interval };
            let _ = timeout(interval, async {
                tokio::select! {
                    _ = appended.changed() => {}
                    () = self.woken.notified() => {}
                }
            })
            .await;
        }
    }

    /// Takes one page into memory. Returns how far the log has now been read.
    async fn read_page(
        &self,
        conn: &mut PgConnection,
        after: Position,
        safe: Position,
    ) -> Result<Position, StoreError> {
        let inner = &self.store.inner;
        let read = ReadLog { after, ..ReadLog::default() };
        let reading = inner.read_final_on(conn, &read, safe, 2_000);
        let page = within(inner.config.read_deadline, "read the log", reading).await?;
        let page = page.map_err(StoreError::on("read the log"))?;
        self.recent.push(page.events);
        Ok(page.next.unwrap_or(safe))
    }
}
