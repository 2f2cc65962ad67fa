//! Requests as a hospital sends them, of patients that nobody is.

use serde_json::{Value, json};

/// A request that waits for no images: in the waiting room at once.
pub fn ready(accession: &str) -> Value {
    let mut exam = requested(accession, &format!("P-{accession}"));
    exam["awaits_images"] = json!(false);
    exam
}

/// A request whose images are awaited.
pub fn requested(accession: &str, patient: &str) -> Value {
    json!({
        "accession": accession,
        "patient": { "id": patient, "name": "TEST^NOBODY", "birth_date": "19700101", "sex": "O" },
        "modality": "CT",
        "description": "CT head",
        "hospital": "Test hospital",
        "priority": "urgent",
    })
}

/// What is said of an exam alike by every site: not what depends on the time or on who is asked.
pub fn replicated(exam: &Value) -> Value {
    let mut exam = exam.clone();
    for local in ["overdue", "images_here"] {
        exam.as_object_mut().expect("an exam").remove(local);
    }
    exam
}
