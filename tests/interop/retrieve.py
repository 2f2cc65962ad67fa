"""Retrieves a study with dicomweb-client.

    retrieve.py BASE_URL STUDY_UID SERIES_UID INSTANCE_UID

Prints one JSON object an instance of the study: its UIDs and the SHA-256 of its pixel data; then
retrieves the one instance alone.
"""

import hashlib
import json
import sys

from dicomweb_client.api import DICOMwebClient


def main():
    client = DICOMwebClient(url=sys.argv[1])
    study = sys.argv[2]
    for instance in client.retrieve_study(study_instance_uid=study):
        print(json.dumps({
            "study": str(instance.StudyInstanceUID),
            "series": str(instance.SeriesInstanceUID),
            "instance": str(instance.SOPInstanceUID),
            "syntax": str(instance.file_meta.TransferSyntaxUID),
            "pixels": hashlib.sha256(instance.PixelData).hexdigest(),
        }))
    series = sys.argv[3]
    one = client.retrieve_instance(study, series, sys.argv[4])
    assert str(one.SOPInstanceUID) == sys.argv[4]


if __name__ == "__main__":
    main()
