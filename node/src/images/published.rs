//! What a publication of a study lists, whether or not its images are here.

use maillage_consensus::ids::SiteId;
use maillage_store::{Hash, StudyManifest};
use maillage_transport::chunk::Class;

use super::{Images, ImagesError};

impl Images {
    /// A study's manifest, from here or from the sites that hold it.
    ///
    /// # Errors
    /// [`ImagesError`]: nobody who answers has it, or it is none.
    pub(crate) async fn published(&self, manifest: Hash, holders: &[SiteId]) -> Result<StudyManifest, ImagesError> {
        self.study_manifest(manifest, &self.to_ask(holders), Class::Copy).await
    }
}
