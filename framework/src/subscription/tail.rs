//! The tail: one reader of the log for all followers of the process.

use std::{
    convert::Infallible,
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use chrono::{DateTime, Utc};
use futures::FutureExt;
use sqlx::PgConnection;
use tokio::{
    sync::{Notify, Semaphore, watch},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    failure::{FollowError, message},
    recent::Recent,
    wake_up,
};
use crate::{
    Position,
    error::StoreError,
    store::{Annals, ReadLog, connect_pooled, horizon, on, own_session, within},
};

/// How long the tail waits before it connects again: longer with each failure, anew after each success.
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// The first pause before another look at a position that somebody in flight holds.
const SOON: Duration = Duration::from_millis(1);

/// How far followers may read, and for how long that holds.
///
/// `epoch` counts the connections of the tail: once it has lost one, what a follower remembers above its committed
/// checkpoint is void, for a crash may have taken the sequence back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Frontier {
    pub(crate) epoch: u64,
    pub(crate) connected: bool,
    pub(crate) safe: Position,
    /// The last event at or below `safe`. What lies between the two are gaps, which a crash can give out again: they may
    /// be passed over in memory, and no checkpoint may stand there. A committed event takes its number with it to disk.
    pub(crate) last: Position,
}

/// The reading end of the tail, for one process.
#[derive(Clone)]
pub(crate) struct Tail {
    pub(crate) frontier: watch::Receiver<Frontier>,
    pub(crate) recent: Arc<Recent>,
    /// A follower works when it has one: so many connections there are, and a long batch of one is no failure of another.
    pub(crate) turns: Arc<Semaphore>,
    /// One more for what is built beside what serves: while a swap holds that back, its batches keep their turns.
    pub(crate) spare_turn: Arc<Semaphore>,
    /// Who follows.
    followed: Arc<Followed>,
    /// Why the log cannot be read now: then no follower hears of anything, however well it is.
    pub(crate) trouble: watch::Receiver<Option<String>>,
}

/// How many partitions of this process follow the log. While none does, its events are not read.
#[derive(Default)]
struct Followed {
    count: AtomicUsize,
    begun: Notify,
}

/// A partition that follows, until it is dropped.
pub(crate) struct Follows(Arc<Followed>);

impl Drop for Follows {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Tail {
    /// Lets the log's events be read as they come, as long as the returned value lives.
    pub(crate) fn follow(&self) -> Follows {
        self.followed.count.fetch_add(1, Ordering::Relaxed);
        self.followed.begun.notify_one();
        Follows(self.followed.clone())
    }

    /// Starts reading, until `stop`.
    pub(crate) fn start(store: Annals, changed: Arc<Notify>, stop: CancellationToken) -> Self {
        let (sender, frontier) = watch::channel(Frontier::default());
        let (trouble_sender, trouble) = watch::channel(None);
        let recent = Arc::new(Recent::default());
        let woken = Arc::new(Notify::new());
        tokio::spawn(wake_up::listen(store.clone(), woken.clone(), changed, stop.clone()));
        let turns = Arc::new(Semaphore::new(store.config().follower_connections.max(1) as usize));
        let followed = Arc::<Followed>::default();
        let (own, counted) = (recent.clone(), followed.clone());
        let reader = Reader { store, recent: own, frontier: sender, trouble: trouble_sender, woken, followed: counted };
        tokio::spawn(async move {
            tokio::select! {
                () = reader.run() => {}
                () = stop.cancelled() => {}
            }
        });
        Self { frontier, recent, turns, spare_turn: Arc::new(Semaphore::new(1)), followed, trouble }
    }
}

struct Reader {
    store: Annals,
    recent: Arc<Recent>,
    frontier: watch::Sender<Frontier>,
    trouble: watch::Sender<Option<String>>,
    woken: Arc<Notify>,
    followed: Arc<Followed>,
}

impl Reader {
    async fn run(self) {
        let (mut epoch, mut pause) = (0, SHORTEST_PAUSE);
        loop {
            let error = match AssertUnwindSafe(self.follow()).catch_unwind().await {
                Ok(Ok(never)) => match never {},
                Ok(Err(error)) => FollowError::Store(error).text(),
                Err(panic) => format!("it panicked: {}", message(panic)),
            };
            self.frontier.send_modify(|frontier| frontier.connected = false);
            tracing::warn!(%error, "the tail of the log lost its connection; followers start again from their checkpoints");
            self.trouble.send_replace(Some(format!("the log cannot be read: {error}")));
            if self.frontier.borrow().epoch > epoch {
                (epoch, pause) = (self.frontier.borrow().epoch, SHORTEST_PAUSE);
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Reads on one connection until it fails.
    async fn follow(&self) -> Result<Infallible, StoreError> {
        let inner = &self.store.inner;
        let mut conn = connect_pooled(inner).await?;
        let mut appended = inner.appender.appended.subscribe();
        let (mut read, mut last) = (Position::START, Position::START);
        let mut first = true;
        let mut held = SOON;
        let mut looked_at = None;
        loop {
            let beginning = on(inner, &mut conn);
            let what = "begin to read the log";
            let beginning = within(inner.config.read_deadline, what, beginning).await?;
            let mut conn = beginning.map_err(StoreError::on(what))?;
            if inner.is_pooled() {
                let asking = inner.sql.read_backend.typed::<(Option<DateTime<Utc>>, DateTime<Utc>)>();
                let asking = within(inner.config.read_deadline, what, asking.fetch_one(&mut *conn)).await?;
                let (started, now) = asking.map_err(StoreError::on(what))?;
                let started = started.ok_or_else(own_session)?;
                // The server may have crashed without this connection noticing.
                first |= looked_at.is_none_or(|looked_at| started >= looked_at);
                looked_at = Some(now);
            }
            let asking = horizon(&mut conn, &inner.sql);
            let horizon = within(inner.config.read_deadline, "read the safe position", asking).await??;
            if first {
                first = false;
                read = horizon.safe;
                last = self.last_position(&mut conn, read).await?;
                self.recent.restart(last);
                self.frontier.send_modify(|frontier| {
                    *frontier = Frontier { epoch: frontier.epoch + 1, connected: true, safe: read, last };
                });
                self.trouble.send_replace(None);
            }
            let safe = horizon.safe.max(read);
            let moved = safe > read;
            let is_followed = self.followed.count.load(Ordering::Relaxed) > 0;
            if moved && !is_followed {
                (read, last) = (safe, self.last_position(&mut conn, safe).await?);
                self.recent.restart(last);
                self.frontier.send_modify(|frontier| (frontier.safe, frontier.last) = (read, last));
            }
            while read < safe {
                (read, last) = self.read_page(&mut conn, (read, last), safe).await?;
                self.frontier.send_modify(|frontier| (frontier.safe, frontier.last) = (read, last));
            }
            let what = "end a look at the log";
            within(inner.config.read_deadline, what, conn.end()).await?.map_err(StoreError::on(what))?;
            // Somebody is in flight: look again soon, and less often the longer it takes.
            let in_flight = horizon.safe < horizon.drawn;
            held = if in_flight && !moved { (held * 2).min(inner.config.poll_interval) } else { SOON };
            let interval = if in_flight { held } else { inner.config.poll_interval };
            let _ = timeout(interval, async {
                tokio::select! {
                    _ = appended.changed(), if is_followed => {}
                    () = self.woken.notified(), if is_followed => {}
                    () = self.followed.begun.notified() => {}
                }
            })
            .await;
        }
    }

    /// Takes one page into memory. Returns how far the log has now been read, and where its last event stands.
    async fn read_page(
        &self,
        conn: &mut PgConnection,
        (after, last): (Position, Position),
        safe: Position,
    ) -> Result<(Position, Position), StoreError> {
        let inner = &self.store.inner;
        let read = ReadLog { after, ..ReadLog::default() };
        let reading = inner.read_final_on(conn, &read, safe, 2_000);
        let page = within(inner.config.read_deadline, "read the log", reading).await?;
        let page = page.map_err(StoreError::on("read the log"))?;
        let last = page.events.last().map_or(last, |event| event.position);
        self.recent.push(page.events);
        Ok((page.next.unwrap_or(safe), last))
    }

    /// The last event at or below `safe`.
    async fn last_position(&self, conn: &mut PgConnection, safe: Position) -> Result<Position, StoreError> {
        let (inner, what) = (&self.store.inner, "read the last position");
        let reading = inner.sql.read_last_position.scalar().bind(safe.get()).fetch_one(conn);
        let last = within(inner.config.read_deadline, what, reading).await?;
        last.map(Position::new).map_err(StoreError::on(what))
    }
}
