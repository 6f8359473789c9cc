//! What a person sees while a read model is built: a bar, or a line now and then.

use std::{
    io,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

use super::model::Build;
use crate::{
    figures::{count, span},
    say::note,
};

/// How often a line tells of the progress where there is no bar.
const EVERY: Duration = Duration::from_secs(3);

/// Shows on standard error how far a build is.
pub(crate) struct Progress {
    name: String,
    bar: ProgressBar,
    /// When it was first looked at, and where it was: a build may have begun long before.
    first: Option<(Instant, i64)>,
    told: Option<Instant>,
}

impl Progress {
    /// For a build of the read model `name`.
    ///
    /// # Errors
    /// The bar's template is wrong.
    pub(crate) fn new(name: &str) -> io::Result<Self> {
        let bar = ProgressBar::new(0);
        let template = "{prefix}  {bar:30} {percent:>3} %  {msg}";
        bar.set_style(ProgressStyle::with_template(template).map_err(io::Error::other)?);
        bar.set_prefix(name.to_owned());
        Ok(Self { name: name.into(), bar, first: None, told: None })
    }

    /// Moves the bar, or tells the progress if it is time.
    pub(crate) fn show(&mut self, build: &Build) {
        if build.state != "running" {
            self.first = None;
        }
        let (begun, from) = *self.first.get_or_insert_with(|| (Instant::now(), build.position.get()));
        let rate = (build.position.get() - from) as f64 / begun.elapsed().as_secs_f64().max(0.001);
        if !self.bar.is_hidden() {
            self.bar.set_length(build.end().unsigned_abs());
            self.bar.set_position(build.position.get().unsigned_abs());
            self.bar.set_message(words(&self.name, build, rate));
        } else if self.told.is_none_or(|told| told.elapsed() >= EVERY) {
            self.told = Some(Instant::now());
            note(format_args!("{}: {}", self.name, words(&self.name, build, rate)));
        }
    }

    /// Takes the bar away.
    pub(crate) fn finish(self) {
        self.bar.finish_and_clear();
    }
}

/// How far a build of the read model `name` is; how fast in positions a second and what is left, or why it does not move.
fn words(name: &str, build: &Build, rate: f64) -> String {
    let mut text = format!("position {} of {}", count(build.position.get()), count(build.end()));
    match &*build.state {
        "running" if build.behind == 0 => text += ", taking its place",
        "running" if rate >= 1.0 => {
            text += &format!(", {} a second, {} left", count(rate as i64), span(build.behind as f64 / rate));
        }
        "running" => {}
        "paused" => text += &format!(", paused: it goes on with `projections resume {name}`"),
        state => text += &format!(", {state}"),
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{super::model::tests::build, *};

    #[test]
    fn progress_is_told_with_its_end_its_rate_and_what_is_left() {
        let going = build("running", 1_000, 120_000);

        let words = |build: &Build, rate| words("sales", build, rate);
        assert_eq!(words(&going, 2_000.4), "position 1,000 of 121,000, 2,000 a second, 59 s left");
        assert_eq!(words(&build("unowned", 0, 9_000), 90.0), "position 0 of 9,000, unowned");
        assert_eq!(
            words(&build("paused", 10, 90), 9.0),
            "position 10 of 100, paused: it goes on with `projections resume sales`"
        );
        assert_eq!(words(&build("running", 9_000, 0), 9.0), "position 9,000 of 9,000, taking its place");
    }
}
