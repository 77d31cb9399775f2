//! Writes the seeds of each target into a folder of its own: corpus DIRECTORY.

use std::{fs, path::PathBuf, process::ExitCode};

fn main() -> ExitCode {
    let Some(directory) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: corpus DIRECTORY");
        return ExitCode::from(2);
    };
    for target in fieldgate::fuzzing::TARGETS {
        let folder = directory.join(target.name);
        let seeds = (target.seeds)();
        let written = fs::create_dir_all(&folder).and_then(|()| {
            (0..).zip(&seeds).try_for_each(|(n, seed)| fs::write(folder.join(format!("{n}")), seed))
        });
        if let Err(error) = written {
            eprintln!("{}: {error}", folder.display());
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
