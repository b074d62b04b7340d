//! One source of every setting: a flag, a TOML key and a `TWICE_…` variable of the same name.
//!
//! Flags win over variables, variables over the file, the file over defaults. The file's values become the defaults of
//! the flags, so each setting is declared once, in the command's `clap` struct. Keys are flag names with underscores.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Arg, ArgMatches, Command};

/// Parses the command line with the values of `--config` as defaults of `subcommand`.
///
/// # Errors
/// A file that does not read, an unknown key, or a value that is neither text, number nor boolean.
pub fn parse(command: Command, subcommand: &str, arguments: &[OsString]) -> Result<ArgMatches> {
    let command = command.mut_subcommand(subcommand, |sub| sub.mut_args(with_variable));
    let Some(path) = config_path(subcommand, arguments) else {
        return Ok(command.get_matches_from(arguments));
    };
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read config file {}", path.display()))?;
    let table: toml::Table =
        text.parse().with_context(|| format!("config file {} is not TOML", path.display()))?;
    let mut defaults = Vec::new();
    for (key, value) in table {
        defaults.push((checked_key(&command, subcommand, &path, &key)?, text_of(&path, &key, value)?));
    }
    let command = command.mut_subcommand(subcommand, |mut sub| {
        for (key, value) in defaults {
            sub = sub.mut_arg(key, |argument| argument.default_value(value).required(false));
        }
        sub
    });
    Ok(command.get_matches_from(arguments))
}

/// Lets a `TWICE_…` variable set the argument.
pub fn with_variable(argument: Arg) -> Arg {
    let variable = format!("TWICE_{}", argument.get_id().as_str().to_uppercase());
    argument.env(variable).hide_env_values(true)
}

fn config_path(subcommand: &str, arguments: &[OsString]) -> Option<PathBuf> {
    if arguments.get(1).is_none_or(|word| word != subcommand) {
        return None;
    }
    let mut words = arguments.iter().map(|word| word.to_string_lossy());
    while let Some(word) = words.next() {
        if word == "--config" {
            return words.next().map(|path| PathBuf::from(path.as_ref()));
        }
        if let Some(path) = word.strip_prefix("--config=") {
            return Some(PathBuf::from(path));
        }
    }
    std::env::var_os("TWICE_CONFIG").map(PathBuf::from)
}

fn checked_key(command: &Command, subcommand: &str, path: &Path, key: &str) -> Result<String> {
    let known: Vec<&str> = command
        .find_subcommand(subcommand)
        .into_iter()
        .flat_map(|sub| sub.get_arguments())
        .filter(|argument| !argument.is_hide_set())
        .map(|argument| argument.get_id().as_str())
        .filter(|id| !["config", "help", "version"].contains(id))
        .collect();
    if known.contains(&key) {
        return Ok(key.to_owned());
    }
    bail!("config file {}: unknown key `{key}`; known keys: {}", path.display(), known.join(", "))
}

fn text_of(path: &Path, key: &str, value: toml::Value) -> Result<String> {
    match value {
        toml::Value::String(text) => Ok(text),
        toml::Value::Integer(number) => Ok(number.to_string()),
        toml::Value::Float(number) => Ok(number.to_string()),
        toml::Value::Boolean(flag) => Ok(flag.to_string()),
        other => bail!(
            "config file {}: `{key}` must be text, a number or a boolean, not {}",
            path.display(),
            other.type_str()
        ),
    }
}

#[cfg(test)]
mod tests {
    use clap::ArgAction;

    use super::*;

    fn command() -> Command {
        let port = Arg::new("port").long("port").default_value("1");
        let config = Arg::new("config").long("config");
        let loud = Arg::new("loud").long("loud").action(ArgAction::Set).default_value("false");
        Command::new("twice").subcommand(Command::new("up").arg(port).arg(config).arg(loud))
    }

    fn port(file: &str, flags: &[&str]) -> Result<String> {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("twice.toml");
        std::fs::write(&path, file).expect("file written");
        let mut arguments: Vec<OsString> = vec!["twice".into(), "up".into(), "--config".into(), path.into()];
        arguments.extend(flags.iter().map(OsString::from));
        let matches = parse(command(), "up", &arguments)?;
        let (_, sub) = matches.subcommand().expect("a subcommand");
        Ok(sub.get_one::<String>("port").expect("has a default").clone())
    }

    #[test]
    fn the_file_beats_the_default_and_the_flag_beats_the_file() {
        assert_eq!(port("", &[]).expect("parses"), "1");
        assert_eq!(port("port = 2", &[]).expect("parses"), "2");
        assert_eq!(port("port = 2", &["--port", "3"]).expect("parses"), "3");
    }

    #[test]
    fn an_unknown_key_is_refused_by_name() {
        let error = port("prot = 2", &[]).expect_err("unknown key").to_string();
        assert!(error.contains("`prot`") && error.contains("port"), "{error}");
    }
}
