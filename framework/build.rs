//! Lists the numbered files of `migrations/`, so that a new one is embedded as soon as it is there.

use std::{env, error::Error, fs, path::Path};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=migrations");
    let folder = Path::new(&env::var("CARGO_MANIFEST_DIR")?).join("migrations");
    let mut files =
        fs::read_dir(&folder)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>, std::io::Error>>()?;
    files.retain(|file| file.extension().is_some_and(|extension| extension == "sql"));
    files.sort();
    let mut list = String::from("&[");
    for file in files {
        let name = file.file_stem().and_then(|stem| stem.to_str()).ok_or("a migration's file name is not UTF-8")?;
        list += &format!("({name:?}, include_str!({:?})),", file.display().to_string());
    }
    fs::write(Path::new(&env::var("OUT_DIR")?).join("migrations.rs"), list + "]")?;
    Ok(())
}
