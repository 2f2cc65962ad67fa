//! The whole life of an exam through the API and the command line of real processes.

use hyper::Method;
use maillage_tests::exams::{ready, requested};
use maillage_tests::{Http, Mesh, Settings, Slices, until};
use serde_json::{Value, json};

use crate::{binary, mesh};

/// POST that must be done.
pub(crate) async fn done(http: Http, path: &str, body: Value) -> Value {
    http.post(path, &body).await.expect(200).json()
}

/// POST that must be refused with this code.
#[track_caller]
pub(crate) fn refused(answer: &maillage_tests::Answer, status: u16, code: &str) {
    let said = answer.clone().expect(status).json();
    assert_eq!(said["code"], json!(code), "{said}");
}

async fn put(http: Http, path: &str, body: &Value) -> maillage_tests::Answer {
    let headers = [("content-type", "application/json")];
    http.send(&Method::PUT, path, &headers, body.to_string()).await.unwrap_or_else(|error| panic!("{}", error.0))
}

pub(crate) async fn add(http: Http, exam: &Value) -> String {
    http.post("/api/v1/exams", exam).await.expect(201).json()["id"].to_string()
}

/// An exam with everything that every earlier command did.
pub(crate) async fn exam(http: Http, id: &str) -> Value {
    http.json(&format!("/api/v1/exams/{id}?fresh=true")).await
}

pub(crate) fn list<'v>(value: &'v Value, name: &str) -> &'v [Value] {
    value[name].as_array().unwrap_or_else(|| panic!("a list of {name} in {value}"))
}

#[tokio::test]
async fn an_exam_lives_from_its_order_to_its_follow_up() {
    let mesh = mesh(3).await;
    let [paris, lyon, nantes] = &mesh.sites[..] else { panic!("three sites") };
    let (here, there) = (paris.http(), nantes.http());
    let add = [
        "exam",
        "add",
        "--patient-id",
        "P1",
        "--accession",
        "A1",
        "--modality",
        "CT",
        "--hospital",
        "CH Nord",
        "--consent",
        "declared",
        "--regulate",
        "--question",
        "bleeding?",
        "--priority",
        "urgent",
    ];
    let id = lyon.run_json(&add).await["id"].to_string();
    let at = |verb: &str| format!("/api/v1/exams/{id}/{verb}");

    // Nobody scans or reads before the regulator's word.
    let shown = exam(here, &id).await;
    assert_eq!((&shown["state"], &shown["to_regulate"]), (&json!("requested"), &json!(true)));
    assert_eq!(shown["workitems"][1]["kind"], json!("regulate"));
    refused(&here.post(&at("acquisition"), &json!({})).await, 422, "missing");
    let waiting = there.json("/api/v1/exams?to-regulate=true&fresh=true").await;
    assert_eq!(list(&waiting, "exams").len(), 1);
    refused(&here.post(&at("regulation"), &json!({ "verdict": "validated", "user": "reg" })).await, 400, "invalid");
    let validated =
        nantes.run_json(&["exam", "regulate", &id, "--protocol", "head, no contrast", "--user", "reg"]).await;
    assert_eq!(validated["done"], json!(true));
    assert_eq!(list(&here.json("/api/v1/exams?to-regulate=true&fresh=true").await, "exams").len(), 0);
    paris.run_json(&["exam", "acquire", &id]).await;
    assert_eq!(exam(there, &id).await["state"], json!("acquiring"));

    // The images come; a radiologist is given it, opens it, and writes twice.
    let study = Slices::new("A1", "P1", 3);
    study.send(lyon.dicom()).await;
    until("the exam waits", async || (exam(here, &id).await["state"] == json!("waiting")).then_some(())).await;
    let granted = nantes.run_json(&["claim", "next", "--user", "dr-a"]).await;
    assert_eq!(granted["exam"]["id"].to_string(), id);
    let token = granted["token"].clone();
    done(there, &at("open"), json!({ "user": "dr-a", "token": token })).await;
    let reading = exam(here, &id).await;
    assert_eq!((&reading["state"], &reading["picked"]), (&json!("reading"), &json!(false)));
    assert!(reading["opened_at"].is_string());
    assert_eq!(list(&here.json("/api/v1/exams?state=reading").await, "exams").len(), 1);
    assert_eq!(list(&here.json("/api/v1/exams?state=claimed").await, "exams").len(), 0);
    let first = json!({ "user": "dr-a", "token": token, "text": "Bleeding, at first sight.", "kind": "preliminary" });
    assert_eq!(done(there, &at("report"), first).await["report"], json!(1));
    assert_eq!(exam(here, &id).await["claim"]["user"], json!("dr-a"), "a preliminary report ends no claim");

    // A colleague is asked, an algorithm has its say, somebody is telephoned.
    let asked =
        done(there, &at("opinions"), json!({ "user": "dr-a", "question": "Do you agree?", "of": "dr-b" })).await;
    let answer = format!("opinions/{}/answer", asked["remark"]);
    let opinion = json!({ "user": "dr-b", "text": "Yes.", "concordance": "agrees" });
    done(here, &at(&answer), opinion.clone()).await;
    refused(&here.post(&at(&answer), &opinion).await, 409, "done-already");
    let finding = [
        "exam",
        "finding",
        &id,
        "--algorithm",
        "bleed",
        "--algorithm-version",
        "2.1",
        "--score",
        "0.97",
        "--finding",
        "intracranial haemorrhage",
        "--priority",
        "vital",
    ];
    paris.run_json(&finding).await;
    let critical = done(there, &at("criticals"), json!({ "user": "dr-a", "text": "Haemorrhage" })).await;
    let remark = critical["remark"].to_string();
    let open = here.json("/api/v1/criticals?fresh=true").await;
    assert_eq!((&open["criticals"][0]["exam"].to_string(), &open["criticals"][0]["overdue"]), (&id, &json!(false)));
    assert!(there.get("/").await.text().contains("résultat critique"), "the worklist shows it");
    let wrong = format!("discrepancies/{remark}/told");
    refused(&here.post(&at(&wrong), &json!({ "user": "dr-a", "whom": "dr-x" })).await, 404, "no-such-remark");
    nantes
        .run_json(&["exam", "told", &id, &remark, "--whom", "dr-x, emergency", "--read-back", "--user", "dr-a"])
        .await;
    assert_eq!(here.json("/api/v1/criticals?fresh=true").await["criticals"], json!([]));

    let last = ["claim", "complete", &id, "--token", &token.to_string(), "--text", "Haemorrhage.", "--user", "dr-a"];
    nantes.run_json(&last).await;
    done(here, &at("addendum"), json!({ "user": "dr-a", "text": "Compared with 2024." })).await;
    refused(&here.post(&at("delivery"), &json!({ "report": 1, "to": "dr-x" })).await, 422, "missing");
    let delivered = paris.run_json(&["exam", "deliver", &id, "--to", "dr-x by MSSanté"]).await;
    assert_eq!(delivered["done"], json!(true));
    done(here, &at("follow-up"), json!({ "user": "dr-x", "text": "Operated on, recovered." })).await;
    let missed =
        done(here, &at("discrepancies"), json!({ "user": "dr-q", "grade": 2, "text": "A minor fracture" })).await;
    let told = format!("discrepancies/{}/told", missed["remark"]);
    done(here, &at(&told), json!({ "user": "dr-q", "whom": "dr-x" })).await;
    done(here, &at("notes"), json!({ "user": "dr-q", "text": "For the review meeting" })).await;

    let shown = exam(there, &id).await;
    assert_eq!((&shown["state"], &shown["priority"]), (&json!("followed-up"), &json!("vital")));
    assert_eq!((&shown["raised_by"], &shown["skipped"]), (&json!("bleed"), &json!([])));
    assert_eq!(shown["regulation"]["protocol"], json!("head, no contrast"));
    assert_eq!(shown["regulation"]["user"], json!("reg"));
    for open in ["critical_open", "discrepancies_open", "opinions_open"] {
        assert_eq!(shown[open], json!(0), "{open}");
    }
    let reports: Vec<_> = list(&shown, "report_list").iter().filter_map(|said| said["kind"].as_str()).collect();
    assert_eq!(reports, ["preliminary", "final", "addendum"]);
    for report in list(&shown, "report_list") {
        assert_eq!(report["signature"], json!("valid"), "signed by the site it was written at: {report}");
    }
    assert_eq!(shown["standing_report"], json!(3));
    let remarks: Vec<_> = list(&shown, "remarks").iter().filter_map(|said| said["kind"].as_str()).collect();
    assert_eq!(remarks, ["opinion", "finding", "critical", "follow-up", "discrepancy", "note"]);
    assert_eq!(shown["remarks"][0]["answer"]["concordance"], json!("agrees"));
    assert_eq!(shown["remarks"][2]["told"]["read_back"], json!(true));
    let kinds: Vec<_> = list(&shown, "workitems").iter().filter_map(|item| item["kind"].as_str()).collect();
    for kind in ["read", "regulate", "second-opinion", "analyse", "deliver"] {
        assert!(kinds.contains(&kind), "{kind} in {kinds:?}");
    }
    let sheet = lyon.run(&["exam", "show", &id]).await.ended(0).stdout;
    for word in
        ["validated by reg", "preliminary report 1", "addendum report 3", "dr-b says agrees at paris", "told dr-x"]
    {
        assert!(sheet.contains(word), "{word} in {sheet}");
    }
}

#[tokio::test]
async fn an_emergency_waits_for_nobody_and_the_record_says_what_was_left_out() {
    let mesh = mesh(1).await;
    let http = mesh.sites[0].http();
    let mut urgent = ready("A1");
    (urgent["regulate"], urgent["priority"]) = (json!(true), json!("vital"));
    let id = add(http, &urgent).await;
    let shown = exam(http, &id).await;
    assert_eq!(shown["state"], json!("waiting"), "no regulator is waited for");
    assert_eq!(shown["skipped"], json!(["regulation", "consent"]));
    assert_eq!(shown["workitems"][1]["state"], json!("CANCELED"));
    assert!(http.get("/?lang=en").await.text().contains("steps left out : regulation, consent"));

    // The same by absolute emergency, which also excuses the consent.
    let mut emergency = ready("A2");
    (emergency["regulate"], emergency["consent"]) = (json!(true), json!("emergency"));
    let id = add(http, &emergency).await;
    assert_eq!(exam(http, &id).await["skipped"], json!(["regulation"]));

    // What is no emergency waits for the regulator, and is refused with a reason.
    let mut ordinary = ready("A3");
    (ordinary["regulate"], ordinary["consent"]) = (json!(true), json!("declared"));
    let id = add(http, &ordinary).await;
    assert_eq!(exam(http, &id).await["state"], json!("receiving"));
    let taken = http.post(&format!("/api/v1/exams/{id}/claim"), &json!({ "user": "dr-a" })).await;
    refused(&taken, 409, "wrong-state");
    mesh.sites[0].run_json(&["exam", "regulate", &id, "--refuse", "no indication", "--user", "reg"]).await;
    let shown = exam(http, &id).await;
    assert_eq!((&shown["state"], &shown["regulation"]["reason"]), (&json!("refused"), &json!("no indication")));
    let validated = json!({ "verdict": "validated", "protocol": "p", "user": "r" });
    let again = http.post(&format!("/api/v1/exams/{id}/regulation"), &validated).await;
    refused(&again, 409, "wrong-state");
}

#[tokio::test]
async fn images_of_a_patient_who_refuses_their_transfer_stay_and_are_read_where_they_are() {
    let mesh = mesh(3).await;
    let [paris, lyon, _] = &mesh.sites[..] else { panic!("three sites") };
    let mut order = requested("A1", "P1");
    order["consent"] = json!("refused");
    let id = add(lyon.http(), &order).await;
    let refusing = Slices::new("A1", "P1", 3);
    refusing.send(lyon.dicom()).await;
    until("the exam waits", async || (exam(lyon.http(), &id).await["state"] == json!("waiting")).then_some(())).await;
    let next = done(paris.http(), "/api/v1/claims/next", json!({ "user": "dr-a" })).await;
    assert_eq!(next["granted"], json!(false), "not given to another site");
    let claim = format!("/api/v1/exams/{id}/claim");
    refused(&paris.http().post(&claim, &json!({ "user": "dr-a" })).await, 403, "consent-refused");
    paris.run(&["claim", "take", &id, "--user", "dr-a"]).await.ended(5);
    let next = done(lyon.http(), "/api/v1/claims/next", json!({ "user": "dr-b" })).await;
    assert_eq!(next["exam"]["id"].to_string(), id);

    // No image has left the site, though another study that came later has all its copies.
    let consenting = Slices::new("A2", "P2", 3);
    consenting.send(lyon.dicom()).await;
    until("the other study has its copies", async || {
        let answer = paris.http().get(&format!("/api/v1/studies/{}", consenting.study)).await;
        (answer.status == 200 && answer.json()["copies"] == json!(3)).then_some(())
    })
    .await;
    let shown = paris.http().json(&format!("/api/v1/studies/{}?fresh=true", refusing.study)).await;
    assert_eq!(shown["copies"], json!(1));
    assert_eq!(shown["part_list"][0]["holders"][0]["site_name"], json!("lyon"));
    let retrieve = format!("/dicom-web/studies/{}", refusing.study);
    refused(&paris.http().get(&retrieve).await, 403, "consent-refused");
    lyon.http().get(&retrieve).await.expect(200);
    let fetch = format!("/api/v1/studies/{}/fetch", refusing.study);
    let fetched = paris.http().post(&fetch, &json!({})).await.expect(200).text();
    assert!(fetched.contains("consent-refused"), "{fetched}");
}

#[tokio::test]
async fn pet_is_for_nuclear_physicians_and_a_rare_case_for_its_experts() {
    let mesh = mesh(1).await;
    let site = &mesh.sites[0];
    let http = site.http();
    let mut pet = ready("A1");
    pet["modality"] = json!("PT");
    let pet = add(http, &pet).await;
    assert_eq!(exam(http, &pet).await["specialty"], json!("nuclear-medicine"));
    assert_eq!(site.run_json(&["claim", "next", "--user", "dr-radio"]).await["granted"], json!(false));
    let given = site.run_json(&["claim", "next", "--specialty", "nuclear-medicine", "--user", "dr-nuc"]).await;
    assert_eq!(given["exam"]["id"].to_string(), pet);

    let mut rare = ready("A2");
    rare["expertise"] = json!("paediatric");
    let rare = add(http, &rare).await;
    assert_eq!(site.run_json(&["claim", "next", "--user", "dr-radio"]).await["granted"], json!(false));
    let given = site.run_json(&["claim", "next", "--expertise", "paediatric", "--user", "dr-paed"]).await;
    assert_eq!(given["exam"]["id"].to_string(), rare);
    refused(
        &http.post("/api/v1/claims/next", &json!({ "user": "dr", "specialties": ["cardiology"] })).await,
        400,
        "invalid",
    );
}

#[tokio::test]
async fn a_take_over_tells_whoever_had_the_exam_and_keeps_what_they_wrote() {
    let mesh = mesh(3).await;
    let [paris, lyon, nantes] = &mesh.sites[..] else { panic!("three sites") };
    let id = add(paris.http(), &ready("A1")).await;
    let claim = format!("/api/v1/exams/{id}/claim");
    let named = json!({ "user": "dr-a", "transaction_uid": "1.2.3.4" });
    let first = done(lyon.http(), &claim, named).await;
    assert_eq!((&first["claim"]["transaction_uid"], &first["exam"]["picked"]), (&json!("1.2.3.4"), &json!(true)));
    refused(&nantes.http().post(&claim, &json!({ "user": "dr-b" })).await, 409, "conflict");
    let take_over = format!("/api/v1/exams/{id}/take-over");
    refused(&nantes.http().post(&take_over, &json!({ "user": "dr-b", "reason": " " })).await, 400, "invalid");
    let second = nantes.run_json(&["claim", "take-over", &id, "--reason", "dr-a left", "--user", "dr-b"]).await;
    assert!(second["token"].as_u64() > first["token"].as_u64());

    let late = json!({ "user": "dr-a", "token": first["token"], "text": "Mine." });
    let answer = lyon.http().post(&format!("/api/v1/exams/{id}/report"), &late).await;
    refused(&answer, 409, "stale-token");
    assert_eq!(answer.json()["kept_as"], json!(1), "nothing written is thrown away");
    let shown = exam(paris.http(), &id).await;
    let (lost, now) = (&shown["workitems"][0], &shown["workitems"][1]);
    assert_eq!((&lost["state"], &lost["performer"]["user"]), (&json!("CANCELED"), &json!("dr-a")));
    assert_eq!(lost["reason"], json!("taken over by dr-b: dr-a left"));
    assert_eq!((&now["replaces"], &now["performer"]["user"]), (&lost["number"], &json!("dr-b")));
    let draft = &shown["report_list"][0];
    assert_eq!((&draft["stale"], &draft["signature"]), (&json!(true), &json!("valid")));
    assert!(lyon.run(&["exam", "show", &id]).await.stdout.contains("canceled     read of dr-a: taken over by dr-b"));
    let none = add(paris.http(), &ready("A2")).await;
    let take_over = format!("/api/v1/exams/{none}/take-over");
    let nobody = nantes.http().post(&take_over, &json!({ "user": "b", "reason": "r" })).await;
    refused(&nobody, 409, "wrong-state");
}

#[tokio::test]
async fn a_signed_report_repeated_at_another_site_is_kept_once() {
    let mesh = mesh(3).await;
    let [paris, lyon, _] = &mesh.sites[..] else { panic!("three sites") };
    let id = add(paris.http(), &ready("A1")).await;
    let granted = done(paris.http(), "/api/v1/claims/next", json!({ "user": "dr-a" })).await;
    let key = uuid::Uuid::new_v4().to_string();
    let report = json!({ "user": "dr-a", "token": granted["token"], "text": "Normal." });
    for site in [paris, lyon, paris] {
        let answer = site.http().try_post(&format!("/api/v1/exams/{id}/report"), &report, Some(&key)).await;
        assert_eq!(answer.expect("an answer").expect(200).json()["report"], json!(1));
    }
    let shown = exam(lyon.http(), &id).await;
    assert_eq!(list(&shown, "report_list").len(), 1);
    assert_eq!(shown["report_list"][0]["signature"], json!("valid"));
}

#[tokio::test]
async fn an_exam_goes_to_its_territory_first_and_to_whom_the_contract_names() {
    let places = ["ght-nord", "ght-sud", ""];
    let settings = |number: usize| Settings { territory: places[number].to_owned(), ..Settings::default() };
    let mesh = Mesh::start(binary(), 3, settings).await;
    let [paris, lyon, nantes] = &mesh.sites[..] else { panic!("three sites") };
    let set = ["hospital", "set", "CH Nord", "--territory", "ght-nord", "--finess", "590000001"];
    lyon.run_json(&set).await;
    let only = ["hospital", "set", "CH Contract", "--site", "nantes", "--regulate"];
    lyon.run_json(&only).await;
    let listed = paris.run_json(&["hospital", "list"]).await;
    until("both hospitals are known", async || {
        (list(&paris.http().json("/api/v1/hospitals?fresh=true").await, "hospitals").len() == 2).then_some(())
    })
    .await;
    drop(listed);
    let one = paris.http().json("/api/v1/hospitals/CH%20Contract?fresh=true").await;
    assert_eq!((&one["sites"], &one["regulate"]), (&json!(["nantes"]), &json!(true)));
    paris.http().get("/api/v1/hospitals/None").await.expect(404);
    let unknown = put(paris.http(), "/api/v1/hospitals/X", &json!({ "sites": ["atlantis"] })).await;
    refused(&unknown, 400, "invalid");

    let mut north = ready("A1");
    (north["hospital"], north["priority"]) = (json!("CH Nord"), json!("scheduled"));
    let id = add(nantes.http(), &north).await;
    until("the mesh knows where the sites are", async || {
        let next = done(lyon.http(), "/api/v1/claims/next", json!({ "user": "dr-sud" })).await;
        if next["granted"] == json!(true) {
            // Not known yet: given back.
            let release = json!({ "token": next["token"], "user": "dr-sud" });
            done(lyon.http(), &format!("/api/v1/exams/{id}/release"), release).await;
            return None;
        }
        Some(())
    })
    .await;
    let next = done(paris.http(), "/api/v1/claims/next", json!({ "user": "dr-nord" })).await;
    assert_eq!(next["exam"]["id"].to_string(), id, "its own territory reads it first");

    let mut contract = ready("A2");
    (contract["hospital"], contract["priority"]) = (json!("CH Contract"), json!("vital"));
    let id = add(nantes.http(), &contract).await;
    refused(
        &paris.http().post(&format!("/api/v1/exams/{id}/claim"), &json!({ "user": "dr" })).await,
        403,
        "no-contract",
    );
    assert_eq!(
        exam(paris.http(), &id).await["skipped"],
        json!(["regulation", "consent"]),
        "the hospital asks for a regulator"
    );
    done(nantes.http(), &format!("/api/v1/exams/{id}/claim"), json!({ "user": "dr" })).await;
}

#[tokio::test]
async fn a_policy_is_agreed_on_once_for_all_sites() {
    let mesh = mesh(3).await;
    let [paris, lyon, _] = &mesh.sites[..] else { panic!("three sites") };
    let shown = paris.run_json(&["policy", "show"]).await;
    assert_eq!((&shown["kept_for_territory"], &shown["critical_seconds"]), (&json!(0.1), &json!(900)));
    paris.run_json(&["policy", "set", "--kept-for-region", "0.5", "--critical-seconds", "120"]).await;
    let shown = lyon.http().json("/api/v1/policy?fresh=true").await;
    assert_eq!((&shown["kept_for_region"], &shown["critical_seconds"]), (&json!(0.5), &json!(120)));
    assert_eq!(shown["kept_for_territory"], json!(0.1), "what was not given stays");
    paris.run(&["policy", "set", "--kept-for-territory", "0.9"]).await.ended(1).complains_of(&["the wider"]);
}
