//! Retries and discards, each with what came of it.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use annals::{BoxError, By, DeadLetters, Followers};
use tokio::time::sleep;

use super::{
    STILL_PARKED,
    letter::{Letter, MOST, parked},
    model::{Build, follower},
};
use crate::{
    figures::{count, counted, span},
    say::say_if_read,
};

/// How long what was asked for may take.
const LIMIT: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(50);

/// What is done to parked events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    /// They are tried again.
    Retry,
    /// They are left out.
    Discard,
}

/// Does it to the chosen events of each read model of `names`, and waits for what comes of it.
///
/// # Errors
/// A name is wrong, then nothing is done; nothing of that is parked; nothing comes of it in time; Postgres cannot be asked.
pub(crate) async fn run(
    followers: &Followers,
    names: &[String],
    letters: &DeadLetters,
    by: &By,
    act: Act,
) -> Result<ExitCode, BoxError> {
    let mut lives = vec![];
    for name in names {
        lives.push((name, follower(followers, name).await?.live));
    }
    let (mut done, mut still) = (0, 0);
    for (name, live) in lives {
        let (changed, left) = one(followers, name, &live, letters, by, act).await?;
        if changed == 0 && names.len() > 1 {
            say_if_read(format_args!("{name}: nothing of that is parked"))?;
        }
        (done, still) = (done + changed, still + left);
    }
    match (done, still) {
        // What is due is tried as soon as somebody runs the read models, which may be this very process.
        (0, _) if (act, letters) == (Act::Retry, &DeadLetters::All) => {
            say_if_read("nothing is parked")?;
            Ok(ExitCode::SUCCESS)
        }
        (0, _) => Err("nothing of that is parked: `dead-letters list` shows what is".into()),
        (_, 0) => Ok(ExitCode::SUCCESS),
        _ => Ok(ExitCode::from(STILL_PARKED)),
    }
}

/// Returns how much was asked for, and how many events of the keys concerned are parked still.
async fn one(
    followers: &Followers,
    name: &str,
    live: &Build,
    letters: &DeadLetters,
    by: &By,
    act: Act,
) -> Result<(u64, usize), BoxError> {
    let chosen = parked(followers, name, letters).await?;
    let concerned = |letter: &Letter| chosen.iter().any(|other| other.has_key_of(letter));
    let mut before = parked(followers, name, &DeadLetters::All).await?;
    before.retain(&concerned);
    let changed = match act {
        Act::Retry => followers.retry(name, letters, by).await?,
        Act::Discard => followers.discard(name, letters, by).await?,
    };
    if changed == 0 {
        return Ok((0, 0));
    }
    // A rebuild may have parked some of it, too, and only so many were looked at.
    let waited = (chosen.len() < MOST && chosen.len() as u64 == changed)
        .then(|| chosen.iter().filter(|letter| letter.state == "queued").count());
    if live.is_held() {
        let mut left = parked(followers, name, &DeadLetters::All).await?;
        left.retain(&concerned);
        say_if_read(format_args!("{name}: {}", held(act, changed, waited, left.len(), &live.state)))?;
        return Ok((changed, left.len()));
    }
    let (what, left_out) = match act {
        Act::Retry => (format!("{} tried again", was(changed, "key")), 0),
        Act::Discard => (discarded(changed, waited), changed as usize),
    };
    let begun = Instant::now();
    let now = loop {
        let mut now = parked(followers, name, &DeadLetters::All).await?;
        now.retain(&concerned);
        if is_settled(&before, &now, act) {
            break now;
        }
        if begun.elapsed() > LIMIT {
            let time = span(LIMIT.as_secs_f64());
            let who = "does a process run it? `work` does, if it is a saga or a reactor";
            return Err(format!("{name}: {what}, and nothing came of it within {time}: {who}").into());
        }
        sleep(LOOK).await;
    };
    let took = before.len().saturating_sub(left_out + now.len());
    say_if_read(format_args!("{name}: {what}{}", came_of_it(took, waited, &now)))?;
    Ok((changed, now.len()))
}

/// Whether every key that was parked is empty, or stands at an event that was tried since.
fn is_settled(before: &[Letter], now: &[Letter], act: Act) -> bool {
    before.iter().all(|letter| {
        let Some(first) = now.iter().find(|other| other.has_key_of(letter)) else { return true };
        let last_failure = before.iter().find(|other| other.has_key_of(first) && other.position == first.position);
        let is_tried = act == Act::Discard || last_failure.is_none_or(|before| before.failed_at != first.failed_at);
        first.state == "failed" && is_tried
    })
}

fn is(number: u64, thing: &str) -> String {
    let (number, verb) = (number as i64, if number == 1 { "is" } else { "are" });
    format!("{} {verb}", counted(number, thing))
}

fn was(number: u64, thing: &str) -> String {
    let (number, verb) = (number as i64, if number == 1 { "was" } else { "were" });
    format!("{} {verb}", counted(number, thing))
}

/// What was discarded; good events may have been among it.
fn discarded(changed: u64, waited: Option<usize>) -> String {
    let what = format!("{} discarded", was(changed, "event"));
    match waited {
        None | Some(0) => what,
        Some(waited) => format!("{what}, {} of which had not failed and only waited", count(waited as i64)),
    }
}

/// What was asked of a read model that does nothing until it is resumed.
fn held(act: Act, changed: u64, waited: Option<usize>, left: usize, state: &str) -> String {
    let left = counted(left as i64, "event");
    match act {
        Act::Retry => format!(
            "nothing was tried, for it is {state}: {} tried again once it is resumed, {left} parked still",
            is(changed, "key")
        ),
        Act::Discard => {
            let what = discarded(changed, waited);
            format!("{what}; the rest follows once it is resumed, for it is {state}, {left} parked still")
        }
    }
}

/// What took effect, and what is parked still for which error. `waited` of what was discarded, if that is known.
fn came_of_it(took: usize, waited: Option<usize>, now: &[Letter]) -> String {
    let effect = match took {
        0 if now.is_empty() && waited == Some(0) => "; nothing waited behind".into(),
        0 if now.is_empty() => String::new(),
        0 => "; nothing took effect".into(),
        took => format!("; {} took effect", counted(took as i64, "event")),
    };
    let error = now.iter().find_map(|letter| letter.error.as_ref());
    match (now.len(), error) {
        (0, _) => effect,
        (parked, None) => format!("{effect}, {} parked still", counted(parked as i64, "event")),
        (parked, Some(error)) => format!("{effect}, {} parked still: {error}", counted(parked as i64, "event")),
    }
}

#[cfg(test)]
mod tests {
    use annals::Position;
    use chrono::{DateTime, Utc};

    use super::*;

    fn letter(key: &str, position: i64, state: &str, failed_at: Option<i64>) -> Letter {
        Letter {
            name: "sales".into(),
            position: Position::new(position),
            key: key.into(),
            by_stream: false,
            state: state.into(),
            attempts: 1,
            fingerprint: None,
            error: failed_at.map(|_| "no such key".into()),
            parked_at: Utc::now(),
            age_seconds: 0,
            failed_at: failed_at.and_then(|at| DateTime::from_timestamp(at, 0)),
            next_attempt_at: None,
            discarded: None,
            stream: "order-1".into(),
            version: 1,
            event_type: "OrderPlaced".into(),
            event_id: String::new(),
            payload: None,
        }
    }

    #[test]
    fn a_retry_is_over_once_each_key_is_empty_or_failed_again() {
        let before =
            [letter("a", 1, "failed", Some(1)), letter("a", 2, "queued", None), letter("b", 3, "failed", Some(1))];
        let is_settled = |now: &[Letter]| is_settled(&before, now, Act::Retry);

        assert!(!is_settled(&before));
        assert!(!is_settled(&[letter("a", 2, "queued", None)]));
        assert!(is_settled(&[]));
        assert!(is_settled(&[letter("a", 1, "failed", Some(2)), letter("a", 2, "queued", None)]));
        assert!(is_settled(&[letter("a", 2, "failed", Some(2))]));
    }

    #[test]
    fn a_discard_is_over_once_what_waited_was_tried() {
        let before =
            [letter("a", 1, "failed", Some(1)), letter("a", 2, "queued", None), letter("a", 3, "queued", None)];
        let is_settled = |now: &[Letter]| is_settled(&before, now, Act::Discard);

        assert!(!is_settled(&before[1..]));
        assert!(is_settled(&[before[0].clone(), before[2].clone()]));
        assert!(is_settled(&[letter("a", 3, "failed", Some(2))]));
        assert!(is_settled(&[]));
    }

    #[test]
    fn what_came_of_it_says_what_took_effect_and_what_is_parked_still() {
        let failed = letter("a", 1, "failed", Some(1));

        assert_eq!(came_of_it(0, Some(0), &[]), "; nothing waited behind");
        assert_eq!([Some(2), None].map(|waited| came_of_it(0, waited, &[])), ["", ""]);
        assert_eq!(came_of_it(2, Some(0), &[]), "; 2 events took effect");
        assert_eq!(came_of_it(0, Some(0), &[failed]), "; nothing took effect, 1 event parked still: no such key");
    }

    #[test]
    fn what_was_discarded_says_how_much_only_waited() {
        assert_eq!(discarded(1, Some(0)), "1 event was discarded");
        assert_eq!(discarded(3, Some(2)), "3 events were discarded, 2 of which had not failed and only waited");
        assert_eq!(discarded(3, None), "3 events were discarded");
    }

    #[test]
    fn a_read_model_that_is_held_has_tried_nothing() {
        assert_eq!(
            held(Act::Retry, 1, None, 2, "paused"),
            "nothing was tried, for it is paused: 1 key is tried again once it is resumed, 2 events parked still"
        );
        assert_eq!(
            held(Act::Discard, 1, Some(0), 1, "halted"),
            "1 event was discarded; the rest follows once it is resumed, for it is halted, 1 event parked still"
        );
    }
}
