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
        Ok(Self { name: name.into(), bar, told: None })
    }

    /// Moves the bar, or tells the progress if it is time.
    pub(crate) fn show(&mut self, build: &Build) {
        if !self.bar.is_hidden() {
            self.bar.set_length(build.end().unsigned_abs());
            self.bar.set_position(build.position.get().unsigned_abs());
            self.bar.set_message(words(build));
        } else if self.told.is_none_or(|told| told.elapsed() >= EVERY) {
            self.told = Some(Instant::now());
            note(format_args!("{}: {}", self.name, words(build)));
        }
    }

    /// Takes the bar away.
    pub(crate) fn finish(self) {
        self.bar.finish_and_clear();
    }
}

/// How far a build is, how fast, and what is left.
fn words(build: &Build) -> String {
    let mut text = format!("position {} of {}", count(build.position.get()), count(build.end()));
    match (build.rate, build.seconds_to_catch_up) {
        _ if build.behind == 0 => text += ", taking its place",
        (Some(rate), Some(left)) => text += &format!(", {} a second, {} left", count(rate as i64), span(left)),
        _ => {}
    }
    if build.state != "running" {
        text += &format!(", {}", build.state);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{super::model::tests::build, *};

    #[test]
    fn progress_is_told_with_its_end_its_rate_and_what_is_left() {
        let going = Build { rate: Some(2_000.4), seconds_to_catch_up: Some(61.0), ..build("running", 1_000, 9_000) };

        assert_eq!(words(&going), "position 1,000 of 10,000, 2,000 a second, 1 min left");
        assert_eq!(words(&build("unowned", 0, 9_000)), "position 0 of 9,000, unowned");
        assert_eq!(words(&build("running", 9_000, 0)), "position 9,000 of 9,000, taking its place");
    }
}
