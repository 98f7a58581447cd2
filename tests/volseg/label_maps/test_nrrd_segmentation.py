# SPDX-License-Identifier: Apache-2.0
"""Segmentations in NRRD: voxels and geometry as every reader finds them, and the fields that 3D Slicer reads."""

import itk
import nibabel as nib
import numpy as np

from volseg.data.volume_reader import load_volume
from volseg.label_maps.anatomy import coded_segments
from volseg.label_maps.nrrd_segmentation import write_nrrd_segmentation

LABELS = (np.arange(6 * 5 * 4).reshape(6, 5, 4) % 3).astype(np.uint8)
OBLIQUE = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.3, -0.2, 0.4) @ np.diag([0.7, -0.9, 2.5]), [31, -7, 402])
SEGMENTS = coded_segments({1: "LUL", 2: "RML"}, {"1": ["UpperLobeOfLung", "Left"], "2": ["MiddleLobeOfRightLung"]})
CATEGORY = "Segmentation category and type - DICOM master list~SCT^91723000^Anatomical Structure"
REGION = "Anatomic codes - DICOM master list~^^~^^"


def test_a_segmentation_for_slicer(tmp_path):
    path = tmp_path / "a.seg.nrrd"
    write_nrrd_segmentation(path, LABELS, OBLIQUE, SEGMENTS)
    volume = load_volume(path)
    np.testing.assert_array_equal(volume[0], LABELS)
    np.testing.assert_allclose(volume.affine, OBLIQUE, atol=1e-9)
    fields = dict(itk.imread(path))
    assert {name: fields[name] for name in fields if name.startswith("Segment")} == {
        "Segmentation_ContainedRepresentationNames": "Binary labelmap|",
        "Segmentation_MasterRepresentation": "Binary labelmap",
        "Segmentation_ReferenceImageExtentOffset": "0 0 0",
        "Segment0_ID": "Segment_1",
        "Segment0_Name": "LUL",
        "Segment0_LabelValue": "1",
        "Segment0_Layer": "0",
        "Segment0_Extent": "0 5 0 4 0 3",
        "Segment0_Color": "0.901961 0.623529 0.000000",
        "Segment0_Tags": f"TerminologyEntry:{CATEGORY}~SCT^45653009^Upper lobe of lung~SCT^7771000^Left~{REGION}|",
        "Segment1_ID": "Segment_2",
        "Segment1_Name": "RML",
        "Segment1_LabelValue": "2",
        "Segment1_Layer": "0",
        "Segment1_Extent": "0 5 0 4 0 3",
        "Segment1_Color": "0.337255 0.705882 0.913725",
        "Segment1_Tags": f"TerminologyEntry:{CATEGORY}~SCT^72481006^Middle lobe of right lung~^^~{REGION}|",
    }
    written = path.read_bytes()
    write_nrrd_segmentation(path, LABELS, OBLIQUE, SEGMENTS)
    assert path.read_bytes() == written
