//! A shop to look after, by its command line.

use std::{
    fs::{File, OpenOptions},
    io::Write,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use annals::testing::{TestDatabase, database};
use serde_json::Value;
use sqlx::PgPool;

pub(crate) const SAMPLE: &str = include_str!("../../data/orders-sample.csv");

pub(crate) const NAMES: [&str; 4] = ["customer_spend", "department_sales", "open_orders", "order_search"];

/// A database with the sample's orders in it, and in its read models.
pub(crate) struct Shop {
    pub(crate) database: TestDatabase,
    pub(crate) pool: PgPool,
}

impl Shop {
    pub(crate) async fn open() -> Self {
        let database = database().await;
        let pool = database.pool().await;
        let shop = Self { database, pool };
        shop.import(SAMPLE);
        shop.prints(&["report", "--json"], 0);
        shop
    }

    /// Another process, which runs the read models.
    pub(crate) fn runs(&self) -> Runner {
        let pipe = std::env::temp_dir().join(format!("{}.pipe", self.database.name()));
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let process = self.command(&["import", pipe.to_str().unwrap(), "--json"]).spawn().unwrap();
        let mut input = OpenOptions::new().write(true).open(&pipe).unwrap();
        input.write_all(SAMPLE.as_bytes()).unwrap();
        Runner { process, input, pipe }
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_example-orders"));
        command.args(arguments).env("DATABASE_URL", self.database.url()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// What `arguments` print, which end with exit code `code`.
    pub(crate) fn prints(&self, arguments: &[&str], code: i32) -> String {
        let output = self.run(arguments);
        let (said, errors) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}{errors}");
        said
    }

    /// The objects that `arguments` print, one a line.
    pub(crate) fn objects(&self, arguments: &[&str], code: i32) -> Vec<Value> {
        self.prints(arguments, code).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    pub(crate) fn import(&self, orders: &str) {
        let file = std::env::temp_dir().join(format!("{}.csv", self.database.name()));
        std::fs::write(&file, orders).unwrap();
        self.prints(&["import", file.to_str().unwrap(), "--json"], 0);
        std::fs::remove_file(file).unwrap();
    }

    pub(crate) fn list(&self) -> Vec<Value> {
        self.objects(&["projections", "list", "--json"], 0)
    }

    /// `field` of every read model.
    pub(crate) fn all(&self, field: &str) -> Vec<Value> {
        self.list().iter().map(|model| model[field].clone()).collect()
    }

    /// Starts what nobody reads. Returns what it says on standard error, and its exit code.
    pub(crate) fn unread(&self, arguments: &[&str]) -> (String, Option<i32>) {
        let mut program = self.command(arguments).spawn().unwrap();
        drop(program.stdout.take());
        let output = program.wait_with_output().unwrap();
        (text(&output.stderr), output.status.code())
    }

    /// Lists the read models until `condition` holds for the one that is called `name`.
    pub(crate) fn wait_for(&self, name: &str, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let model = self.list().into_iter().find(|model| model["name"] == name).unwrap();
            if condition(&model) {
                return model;
            }
            assert!(Instant::now() < deadline, "not in a minute: {what}: {model}");
        }
    }

    pub(crate) async fn number(&self, sql: &'static str) -> i64 {
        sqlx::query_scalar(sql).fetch_one(&self.pool).await.unwrap()
    }

    pub(crate) async fn execute(&self, sql: &'static str) {
        sqlx::raw_sql(sql).execute(&self.pool).await.unwrap();
    }
}

/// A process that runs the read models until it is ended: an import whose file does not end.
pub(crate) struct Runner {
    process: Child,
    input: File,
    pipe: PathBuf,
}

impl Runner {
    pub(crate) fn owner(&self) -> String {
        format!("example-orders {}", self.process.id())
    }

    pub(crate) fn end(self) {
        let Self { process, input, pipe } = self;
        drop(input);
        assert_eq!(process.wait_with_output().unwrap().status.code(), Some(0));
        std::fs::remove_file(pipe).unwrap();
    }
}

pub(crate) fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args([name, &child.id().to_string()]).status().unwrap().success());
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A file of one order with one line.
pub(crate) fn order(id: i64, product: &str) -> String {
    let header = SAMPLE.lines().next().unwrap();
    assert_eq!(
        header,
        "order_id,customer_id,store_id,placed_at,sku,product,department,quantity,amount_cents,discount_cents"
    );
    format!("{header}\n{id},7,3,2017-01-31T12:00:00Z,1,{product},GROCERY,1,100,25\n")
}
