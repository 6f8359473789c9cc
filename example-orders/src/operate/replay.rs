//! Checks that this build can read and apply everything that the log holds, before it is deployed.

use std::{
    io,
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use annals::{BoxError, ReplayFailure, ReplayProgress, Replayed, embedded::Database};
use indicatif::{ProgressBar, ProgressStyle};
use tokio_util::sync::CancellationToken;

use crate::{
    cli::Replay,
    figures::{count, counted, span},
    say::{note, say_if_read},
    shop::{self, Role},
    signals::until,
    typed, watch,
};

/// How often a line tells of the progress where there is no bar.
const EVERY: Duration = Duration::from_secs(3);

/// Carries out what was typed. Nothing is started: other builds may run the shop meanwhile.
///
/// # Errors
/// There is no server, there is no store that this build can read, or Postgres cannot be asked.
pub(crate) async fn run(data_dir: &Path, command: Replay, stop: &CancellationToken) -> Result<ExitCode, BoxError> {
    let Replay::Check { json } = command;
    let Some(database) = until(stop, shop::database(data_dir)).await? else { return Ok(Role::Operator.stopped()) };
    let outcome = tokio::select! {
        outcome = until(stop, check(&database, data_dir, json)) => outcome,
        never = watch::watch(&database) => match never {},
    };
    let closed = database.close().await;
    let code = outcome?.unwrap_or(Role::Operator.stopped());
    closed?;
    Ok(code)
}

async fn check(database: &Database, data_dir: &Path, json: bool) -> Result<ExitCode, BoxError> {
    let store = shop::connect(database.url(), false).await.map_err(|error| shop::cannot_use(database, error.into()))?;
    let (begun, mut progress) = (Instant::now(), Progress::new()?);
    let replayed = shop::app(&store).replay_check(|at| progress.show(at)).await;
    progress.bar.finish_and_clear();
    store.close().await;
    let replayed = replayed?;
    match json {
        true => say_if_read(serde_json::to_string(&replayed)?)?,
        false => say_if_read(shown(&replayed, begun.elapsed()))?,
    }
    let Some(failure) = &replayed.failure else { return Ok(ExitCode::SUCCESS) };
    note(described(failure, data_dir));
    Ok(ExitCode::FAILURE)
}

/// What was read, by whom, and what was not.
fn shown(replayed: &Replayed, took: Duration) -> String {
    let (events, streams) = (counted(replayed.events as i64, "event"), counted(replayed.streams as i64, "stream"));
    let end = match replayed.failure {
        Some(_) => "the check ended there".to_owned(),
        None => format!("this build can read and apply them all; it took {}", span(took.as_secs_f64())),
    };
    let position = count(replayed.position.get());
    let mut text = format!("{events} of {streams} up to position {position}: {end}\n");
    text += &format!("   aggregates    {}\n", replayed.aggregates.join(", "));
    text += &format!("   read models   {}\n", replayed.followers.join(", "));
    for (category, events) in &replayed.unread {
        let events = counted(*events as i64, "event");
        text += &format!("   not looked at {events} of {category:?}, which nothing in this build reads\n");
    }
    text + "nothing was written"
}

/// The event that failed, and what to do about it.
fn described(failure: &ReplayFailure, data_dir: &Path) -> String {
    let ReplayFailure { by, stream, version, position, event_type, schema_version, error } = failure;
    let (kind, name) = by.split_once(' ').unwrap_or(("", by));
    let mend = match kind {
        "aggregate" => {
            "mend its apply, or the upcast of the event, and check again: commands to this stream would fail".into()
        }
        _ => {
            let discard = format!("dead-letters discard {name} --event {position} --reason TEXT");
            format!(
                "mend the handler, or the upcast of the event, and check again; or go on without the event, once it is parked\n   {}",
                typed::command(data_dir, &discard)
            )
        }
    };
    format!(
        "do not deploy this build: {by} fails at position {position}, {event_type} (schema version {schema_version}) of \
         {stream}, version {version}:\n   {error}\n{mend}"
    )
}

/// Shows on standard error how far the check is.
struct Progress {
    bar: ProgressBar,
    told: Instant,
}

impl Progress {
    fn new() -> io::Result<Self> {
        let bar = ProgressBar::new(0);
        let template = "{prefix}  {bar:30} {percent:>3} %  {msg}";
        bar.set_style(ProgressStyle::with_template(template).map_err(io::Error::other)?);
        Ok(Self { bar, told: Instant::now() })
    }

    fn show(&mut self, at: &ReplayProgress) {
        let words = format!("{} of at most {}", count(at.events as i64), counted(at.up_to.get(), "event"));
        if !self.bar.is_hidden() {
            self.bar.set_prefix(at.by.clone());
            self.bar.set_length(at.up_to.get().unsigned_abs());
            self.bar.set_position(at.events);
            self.bar.set_message(words);
        } else if self.told.elapsed() >= EVERY {
            self.told = Instant::now();
            note(format_args!("{}: {words}", at.by));
        }
    }
}

#[cfg(test)]
mod tests {
    use annals::{Position, Version};

    use super::*;

    #[test]
    fn a_failure_is_told_with_its_event_and_what_to_do() {
        let failure = |by: &str| ReplayFailure {
            by: by.into(),
            stream: "order-7".into(),
            version: Version::new(2),
            position: Position::new(9),
            event_type: "OrderPlaced".into(),
            schema_version: 1,
            error: "no such field".into(),
        };

        let of_aggregate = described(&failure("aggregate order"), Path::new(".data"));
        let of_view = described(&failure("view open_orders"), Path::new(".data"));

        assert!(of_aggregate.contains("aggregate order fails at position 9, OrderPlaced (schema version 1) of order-7, version 2:\n   no such field\nmend its apply"), "{of_aggregate}");
        assert!(of_view.ends_with("-- dead-letters discard open_orders --event 9 --reason TEXT"), "{of_view}");
    }

    #[test]
    fn what_nothing_reads_is_told() {
        let replayed = Replayed {
            position: Position::new(1_200),
            events: 1_100,
            streams: 1,
            aggregates: vec!["order".into()],
            followers: vec!["sales".into(), "spend".into()],
            unread: [("note".to_owned(), 1)].into(),
            failure: None,
        };

        let text = shown(&replayed, Duration::from_secs(3));

        assert!(
            text.starts_with(
                "1,100 events of 1 stream up to position 1,200: this build can read and apply them all; it took 3 s\n"
            ),
            "{text}"
        );
        assert!(text.contains("read models   sales, spend\n   not looked at 1 event of \"note\", which"), "{text}");
    }
}
