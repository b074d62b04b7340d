use clap::{CommandFactory, Parser};

use super::*;
use crate::cli::{Cli, Command};

fn parse(line: &str) -> Result<Command, clap::Error> {
    Cli::try_parse_from(std::iter::once("twice-loadgen").chain(line.split_whitespace()))
        .map(|cli| cli.command)
}

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn every_flag_of_run_is_read() {
    let line = "run --target http://localhost:1 --api-key k --timeout 3s --give-up-after 5s --rate 50000 --duration 30s \
        --campaigns 10000 --zipf 1.05 --duplicates 0.6% --late 0.3% --conflicts 0.1% --seed 7 --batch 200 \
        --ledger F --overwrite --no-campaigns --connections 9 --ads 3 --users 4 --publishers 5 --unknown-campaigns 6 \
        --price-changes 8 --event-start 2025-01-15T12 --event-span 1h --disorder 2s --campaign-prefix p- \
        --profile retry-storm --body arrow --worker 2/3";
    let Ok(Command::Run(args)) = parse(line) else { panic!("must be read") };
    assert_eq!(args.server.target, "http://localhost:1");
    assert_eq!(args.server.api_key.as_deref(), Some("k"));
    assert_eq!(args.server.timeout, Duration::from_secs(3));
    assert_eq!(args.server.give_up_after, Duration::from_secs(5));
    assert_eq!((args.rate, args.duration), (50_000, Duration::from_secs(30)));
    assert_eq!((args.batch, args.connections), (200, 9));
    assert_eq!((args.body, args.worker), (BodyForm::Arrow, Some(Worker { number: 2, of: 3 })));
    assert_eq!(args.stream.profile, Profile::RetryStorm);
    assert_eq!(args.ledger, Some(PathBuf::from("F")));
    assert!(args.overwrite && args.no_campaigns);
    let stream = args.stream;
    assert_eq!((stream.seed, stream.campaigns, stream.zipf), (7, 10_000, 1.05));
    assert_eq!(stream.duplicates.parts_per_million, 6_000);
    assert_eq!(stream.late.parts_per_million, 3_000);
    assert_eq!(stream.conflicts.parts_per_million, 1_000);
    assert_eq!((stream.ads, stream.users, stream.publishers), (3, 4, 5));
    assert_eq!((stream.unknown_campaigns, stream.price_changes), (Some(6), Some(8)));
    assert_eq!(stream.event_span, Some(Duration::from_secs(3_600)));
    assert_eq!(stream.disorder, Duration::from_secs(2));
    assert_eq!(stream.campaign_prefix.as_deref(), Some("p-"));
    assert!(
        matches!(stream.event_start, Some(EventStart::At(start)) if start.epoch_ms() == 1_736_942_400_000)
    );
}

#[test]
fn start_time_is_another_name_of_event_start() {
    let Ok(Command::Run(args)) = parse("run --start-time live") else { panic!("must be read") };
    assert_eq!(args.stream.event_start, Some(EventStart::Live));
}

#[test]
fn every_flag_of_verify_is_read() {
    let line = "verify --ledger F --ledger G --target http://localhost:1 --reconcile --exclusive --extra-copies \
        --horizon-hours 24 --require-complete --reconcile-timeout 1m";
    let Ok(Command::Verify(args)) = parse(line) else { panic!("must be read") };
    assert_eq!(args.ledger, [PathBuf::from("F"), PathBuf::from("G")]);
    assert!(args.reconcile && args.exclusive && args.extra_copies && args.require_complete);
    assert_eq!((args.horizon_hours, args.reconcile_timeout), (24, Duration::from_secs(60)));
    assert!(parse("verify").is_err());
}

#[test]
fn every_flag_of_generate_and_campaigns_is_read() {
    let Ok(Command::Generate(args)) =
        parse("generate --clicks 5 --out F.ndjson --ledger L --overwrite --seed 3")
    else {
        panic!("must be read")
    };
    assert_eq!((args.clicks, args.stream.seed, args.overwrite), (5, 3, true));
    assert_eq!((args.out, args.ledger), (PathBuf::from("F.ndjson"), Some(PathBuf::from("L"))));
    let Ok(Command::Campaigns(args)) = parse("campaigns --ledger L") else { panic!("must be read") };
    assert_eq!(args.ledger, PathBuf::from("L"));
}

#[test]
fn wrong_values_are_refused_with_what_to_write() {
    let error = parse("run --duplicates much").expect_err("not a share").to_string();
    assert!(error.contains("such as 0.6%"), "{error}");
    let error = parse("run --duration 30").expect_err("no unit").to_string();
    assert!(error.contains("30s"), "{error}");
    assert!(parse("run --rate 0").is_err());
    assert!(parse("run --campaigns 0").is_err());
    assert!(parse("run --batch 0").is_err());
}

#[test]
fn every_flag_has_short_help() {
    for command in Cli::command().get_subcommands() {
        for argument in command.get_arguments() {
            assert!(argument.get_help().is_some(), "{} {}", command.get_name(), argument.get_id());
        }
    }
}
