//! What can be typed.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

/// Where the private Postgres is when nobody says where.
pub(crate) const DATA_DIR: &str = ".data";

/// An order service on Annals. Without a command it gives a tour.
#[derive(Debug, Parser)]
#[command(name = "example-orders", version)]
pub(crate) struct Cli {
    /// The folder of the private Postgres; not used when DATABASE_URL is set.
    #[arg(long, global = true, value_name = "FOLDER", default_value = DATA_DIR)]
    pub(crate) data_dir: PathBuf,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Brings over the orders of an old system. Exit code 3 when something was rejected.
    ///
    /// A server that is away is waited for, about a minute. However an import ends, the same command goes on with it: what
    /// is there already is not stored twice. Ctrl-C ends it in good order with exit code 0, before the file's end.
    Import {
        /// A CSV file, gzipped or not.
        file: PathBuf,
        /// Ends with one line of JSON instead of a text.
        #[arg(long)]
        json: bool,
        /// Writes every rejection to this file, one a line. It must not be there yet.
        #[arg(long, value_name = "FILE")]
        rejections: Option<PathBuf>,
    },
    /// Shows what the read models say, once they have caught up.
    Report {
        /// One line of JSON instead of tables.
        #[arg(long)]
        json: bool,
    },
}
