//! `redial runs …`: recording runs in bulk.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use contracts::{BODY_DEPTH, FieldError, Json, Loc, OrgId, PayloadFormat, RunId, RunUpdate};
use egress::Policy;
use indicatif::{ProgressBar, ProgressStyle};
use store::{AcceptPolicy, Deliver, RecordedRun, Store, StoreError, record_run};

use crate::commands::{open_store, require_organization};
use crate::settings::Settings;

/// Runs.
#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Record the runs of a file, one JSON run a line: the body of its PUT, and its id. Doing it again is harmless.
    Import {
        /// The file; - is standard input.
        file: PathBuf,
        /// The organization they belong to.
        #[arg(long, value_name = "ID")]
        org: OrgId,
        /// Announce those that have ended by their automatic deliveries, as the API would.
        #[arg(long)]
        deliver: bool,
    },
}

/// Lines recorded in one transaction.
const CHUNK: usize = 500;

/// A line that can be recorded, by its number.
struct Line {
    number: usize,
    id: RunId,
    update: RunUpdate,
}

#[derive(Default)]
struct Counts {
    created: usize,
    known: usize,
    bad: usize,
}

pub(crate) async fn run(settings: &Settings, command: Command) -> anyhow::Result<()> {
    let Command::Import { file, org, deliver } = command;
    let store = open_store(settings).await?;
    store
        .read(move |tx| require_organization(tx, org))
        .await?;
    let deliver = if deliver { Deliver::Automatically } else { Deliver::Never };
    let importer = Importer { store, org, deliver, accept: settings.accept_policy(), egress: settings.egress_policy() };
    let progress = progress_bar(&file)?;
    let input: Box<dyn Read> = match file.to_str() {
        Some("-") => Box::new(io::stdin().lock()),
        _ => Box::new(File::open(&file).with_context(|| format!("cannot read {}", file.display()))?),
    };
    let counts = importer.import(BufReader::new(input), &progress).await?;
    progress.finish_and_clear();
    let Counts { created, known, bad } = counts;
    writeln!(io::stdout(), "{created} created, {known} known, {bad} bad")?;
    ensure!(bad == 0, "{bad} line(s) could not be recorded");
    Ok(())
}

struct Importer {
    store: Store,
    org: OrgId,
    deliver: Deliver,
    accept: AcceptPolicy,
    egress: Policy,
}

impl Importer {
    async fn import(&self, mut input: impl BufRead, progress: &ProgressBar) -> anyhow::Result<Counts> {
        let mut counts = Counts::default();
        let mut chunk = Vec::with_capacity(CHUNK);
        let mut text = Vec::new();
        for number in 1.. {
            text.clear();
            let read = input.read_until(b'\n', &mut text).with_context(|| format!("cannot read line {number}"))?;
            progress.inc(read as u64);
            if !text.trim_ascii().is_empty() {
                match self.parse(&text) {
                    Ok((id, update)) => chunk.push(Line { number, id, update }),
                    Err(reason) => report(progress, &mut counts, number, &reason),
                }
            }
            if chunk.len() == CHUNK || read == 0 {
                self.record(std::mem::take(&mut chunk), progress, &mut counts).await?;
            }
            if read == 0 {
                break;
            }
        }
        Ok(counts)
    }

    /// Reads one line by the rules of `PUT /v1/runs/{run_id}`.
    fn parse(&self, line: &[u8]) -> Result<(RunId, RunUpdate), String> {
        let json = Json::parse(line.trim_ascii_end(), BODY_DEPTH).map_err(|error| error.to_string())?;
        let Json::Object(mut run) = json else { return Err("expected a JSON object".into()) };
        let id = run.shift_remove("id").ok_or("id is missing")?;
        let id = id.as_str().and_then(|id| id.parse().ok()).ok_or("id is not a UUID")?;
        let body = Json::Object(run).to_text(PayloadFormat::Compact);
        let update = api::parse_run(body.as_bytes(), &self.egress).map_err(|errors| sentence(&errors))?;
        Ok((id, update))
    }

    async fn record(&self, chunk: Vec<Line>, progress: &ProgressBar, counts: &mut Counts) -> anyhow::Result<()> {
        let (org, deliver, accept) = (self.org, self.deliver, self.accept);
        let recorded = self.store.write(move |tx, now| {
            let record = |line: Line| {
                let run = (org, line.id);
                let recorded = record_run(tx, now, &accept, deliver, run, &line.update, "runs import")?;
                Ok::<_, StoreError>((line.number, recorded))
            };
            chunk.into_iter().map(record).collect::<Result<Vec<_>, _>>()
        });
        for (number, recorded) in recorded.await? {
            match recorded {
                RecordedRun::Created(..) => counts.created += 1,
                RecordedRun::Updated(..) => counts.known += 1,
                RecordedRun::StatusConflict(status) => {
                    let reason = format!("the run has ended as {status}, which never changes");
                    report(progress, counts, number, &reason);
                }
            }
        }
        Ok(())
    }
}

fn report(progress: &ProgressBar, counts: &mut Counts, number: usize, reason: &str) {
    counts.bad += 1;
    progress.suspend(|| {
        // A complaint that can't be written is still counted.
        let _ = writeln!(io::stderr(), "line {number}: {reason}");
    });
}

fn sentence(errors: &[FieldError]) -> String {
    let place = |error: &FieldError| {
        let steps = error.loc.iter().skip(1).map(|step| match step {
            Loc::Key(key) => key.clone(),
            Loc::Index(index) => index.to_string(),
        });
        steps.collect::<Vec<_>>().join(".")
    };
    errors.iter().map(|error| format!("{}: {}", place(error), error.msg)).collect::<Vec<_>>().join("; ")
}

/// Shows how far it is, on a terminal only.
fn progress_bar(file: &Path) -> anyhow::Result<ProgressBar> {
    let size = std::fs::metadata(file).ok().filter(std::fs::Metadata::is_file).map(|file| file.len());
    if file.is_dir() {
        bail!("{} is a directory", file.display());
    }
    let style = ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes} {elapsed}")?;
    Ok(ProgressBar::new(size.unwrap_or(0)).with_style(style))
}
