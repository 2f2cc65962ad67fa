//! The command line as a whole.

use clap::CommandFactory as _;

use super::*;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split_whitespace())
}

#[test]
fn the_command_line_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn every_documented_command_is_accepted() {
    for line in [
        "maillage init",
        "maillage init --mesh ouest -o json",
        "maillage join TOKEN",
        "maillage join -",
        "maillage -c x.toml serve -v",
        "maillage token create --lifetime 1h",
        "maillage token list",
        "maillage token revoke KEY --yes",
        "maillage status --watch",
        "maillage health -o json",
        "maillage peers list",
        "maillage exams list --state waiting --limit 5 --fresh",
        "maillage exams show 3",
        "maillage exams add --patient-id P --accession A --patient-name N --birth-date 1970-01-31 --sex F --issuer I \
         --modality CT --description D --hospital H --physician P --priority vital --without-images",
        "maillage exams cancel 3 --reason double",
        "maillage exams prioritise 3 semi-urgent",
        "maillage exams reconcile 4 --into 3",
        "maillage claim next --modality CT --modality MR --user ann",
        "maillage claim take 3 --user ann",
        "maillage claim release 3 --token 9 --reason tired --user ann",
        "maillage claim complete 3 --token 9 --report - --user ann",
        "maillage claim complete 3 --token 9 --text Normal. --user ann",
        "maillage exams list --state followed-up --hospital H --modality CT --patient-id P --accession A --to-regulate",
        "maillage exam add --patient-id P --accession A --consent emergency --specialty nuclear-medicine --expertise E \
         --regulate --question why",
        "maillage exam regulate 3 --protocol head --user reg",
        "maillage exam regulate 3 --refuse irrelevant --user reg",
        "maillage exam acquire 3",
        "maillage exam note 3 seen --user ann",
        "maillage exam opinion ask 3 agreed? --of bob --user ann",
        "maillage exam opinion give 3 1 yes --concordance differs-minor --user bob",
        "maillage exam finding 3 --algorithm bleed --algorithm-version 1 --score 0.9 --finding F --location L \
         --priority vital",
        "maillage exam critical 3 bleeding --user ann",
        "maillage exam criticals",
        "maillage exam told 3 2 --whom dr-x --read-back --user ann",
        "maillage exam discrepancy 3 --grade 3 missed --user ann",
        "maillage exam deliver 3 --to dr-x --report 1",
        "maillage exam follow-up 3 recovered --user ann",
        "maillage exam addend 3 --text also --user ann",
        "maillage exam addend 3 --report - --user ann",
        "maillage claim next --specialty nuclear-medicine --specialty radiology --expertise E --user ann",
        "maillage claim take-over 3 --reason lost --user bob",
        "maillage claim open 3 --token 9 --user ann",
        "maillage claim complete 3 --token 9 --preliminary --text Normal. --user ann",
        "maillage hospital list",
        "maillage hospital set CH-Nord --finess 1 --territory T --department D --region R --site lyon --regulate",
        "maillage policy show",
        "maillage policy set --kept-for-territory 0.1 --kept-for-experts 0.3 --critical-seconds 600",
        "maillage placement show",
        "maillage placement set site lyon --weight 2000 --zone z --region r --user ann",
        "maillage placement set copies 2",
        "maillage placement set zones 2",
        "maillage placement set contract site:lyon --only paris --only nantes --region r --copies 2 --zones 2",
        "maillage placement set contract territory:T --all-but paris",
        "maillage placement set contract any --nobody",
        "maillage placement set no-contract any",
        "maillage placement diff",
        "maillage placement apply --version 3 --force contract --yes",
        "maillage placement revert --version 3",
        "maillage placement under --limit 5 --after 1.2.3",
        "maillage drain lyon --reason disks --force --yes",
        "maillage drain --user ann",
        "maillage undrain",
        "maillage chunks locate 1.2.3",
        "maillage stats",
        "maillage stats --from 7d --to 2026-01-02T03:04:05Z --by urgency -o json",
        "maillage exams break-glass 3 --reason cut-off --user ann --yes",
        "maillage claim release 3 --token glass-7e57d004-2b97-4e7a-b45f-5387367791cd --user ann",
        "maillage outbox list -o json",
        "maillage outbox drop 7e57d004-2b97-4e7a-b45f-5387367791cd",
        "maillage study list",
        "maillage study show 1.2.3",
        "maillage study import a b --jobs 8",
        "maillage study fetch 1.2.3 --out dir",
        "maillage study verify 1.2.3",
        "maillage chunks stats",
        "maillage verify -o json",
        "maillage scrub start",
        "maillage scrub pause",
        "maillage scrub status",
        "maillage repair",
        "maillage repair --study 1.2.3",
        "maillage config template",
        "maillage config check",
        "maillage config show -o json",
        "maillage demo --nodes 5 --slices 400 --exit --keep dir",
        "maillage version",
        "maillage claim take 3 --user ann --command-id 7e57d004-2b97-4e7a-b45f-5387367791cd",
    ] {
        parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
    }
}

#[test]
fn what_makes_no_sense_is_a_usage_error() {
    for line in [
        "maillage",
        "maillage exams show seven",
        "maillage exams cancel 3",
        "maillage exams add --patient-id P",
        "maillage exams add --patient-id P --accession A --priority soon",
        "maillage exams add --patient-id P --accession A --birth-date 31.01.1970",
        "maillage claim complete 3 --token 9 --user ann",
        "maillage claim complete 3 --token 9 --user ann --text a --report b",
        "maillage exam regulate 3",
        "maillage exam regulate 3 --protocol a --refuse b",
        "maillage exam discrepancy 3 --grade 5 missed",
        "maillage exam note 3",
        "maillage exam opinion give 3 1 yes --user bob",
        "maillage claim take-over 3 --user bob",
        "maillage claim next --specialty cardiology --user ann",
        "maillage hospital set",
        "maillage stats --by weekday",
        "maillage exams break-glass 3 --user ann",
        "maillage claim release 3 --token nine --user ann",
        "maillage outbox drop 7",
        "maillage study import",
        "maillage study import a --jobs 0",
        "maillage token create --lifetime soon",
        "maillage claim take 3 --user ann --command-id 7",
        "maillage status -o yaml",
    ] {
        let error = parse(line).err().unwrap_or_else(|| panic!("{line} was accepted"));
        assert!(error.use_stderr(), "{line}");
    }
}

#[test]
fn an_old_answer_says_its_age_and_a_young_one_does_not() {
    assert_eq!(age_note(&serde_json::json!({ "age_ms": 100 })), "");
    assert_eq!(age_note(&serde_json::json!({})), "");
    assert!(age_note(&serde_json::json!({ "age_ms": 12_000 })).contains("12.0 s ago"));
    assert!(age_note(&serde_json::json!({ "age_ms": null })).contains("no quorum has confirmed"));
}
