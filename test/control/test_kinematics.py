"""The DH kinematics against pinocchio on the FR3's URDF, and inverse kinematics against itself."""

import numpy as np
import pytest

from vipra_ros.control import kinematics as kin
from vipra_ros.control.profile import load_profile

PROFILE = load_profile("fr3")


def random_q(n, seed, shrink=0.0):
    rng = np.random.default_rng(seed)
    return rng.uniform(PROFILE.lower + shrink, PROFILE.upper - shrink, (n, 7))


def urdf_model():
    pin = pytest.importorskip("pinocchio")
    franky_sim = pytest.importorskip("franky_sim")
    import pathlib

    urdf = pathlib.Path(franky_sim.__file__).parent / "assets" / "fr3_clean.urdf"
    model = pin.buildModelFromUrdf(str(urdf))
    return pin, model, model.createData()


def test_flange_and_jacobian_match_the_urdf():
    pin, model, data = urdf_model()
    link8 = next(model.getFrameId(f.name) for f in model.frames if f.name.endswith("link8"))
    flange = kin.forward(PROFILE, random_q(50, 0), "flange")
    jacobians = kin.jacobian(PROFILE, random_q(50, 0), "flange")
    for q, pose, jac in zip(random_q(50, 0), flange, jacobians):
        full = np.zeros(model.nq)
        full[:7] = q
        pin.forwardKinematics(model, data, full)
        pin.updateFramePlacements(model, data)
        np.testing.assert_allclose(pose, data.oMf[link8].homogeneous, atol=1e-6)
        reference = pin.computeFrameJacobian(model, data, full, link8, pin.ReferenceFrame.LOCAL_WORLD_ALIGNED)
        np.testing.assert_allclose(jac, reference[:, :7], atol=1e-6)


def test_tcp_is_the_hand():
    q = random_q(5, 1)
    offset = np.linalg.inv(kin.forward(PROFILE, q, "flange")) @ kin.forward(PROFILE, q)
    np.testing.assert_allclose(offset[:, :3, 3], np.tile([0, 0, 0.1034], (5, 1)), atol=1e-12)
    np.testing.assert_allclose(kin.rotation_vector(offset[0, :3, :3]), [0, 0, -np.pi / 4], atol=1e-12)


def test_the_ready_pose_is_the_known_one():
    ready = np.array([0, -np.pi / 4, 0, -3 * np.pi / 4, 0, np.pi / 2, np.pi / 4])
    pose = kin.forward(PROFILE, ready)  # widely published: tool straight down
    np.testing.assert_allclose(pose[:3, 3], [0.30689, 0.0, 0.48688], atol=1e-4)
    np.testing.assert_allclose(pose[:3, :3], np.diag([1.0, -1.0, -1.0]), atol=1e-9)


def test_jacobian_is_the_derivative():
    q, step = random_q(1, 2)[0], 1e-6
    numeric = np.stack(
        [kin.pose_error(kin.forward(PROFILE, q - step * e), kin.forward(PROFILE, q + step * e)) for e in np.eye(7)],
        1,
    ) / (2 * step)
    np.testing.assert_allclose(kin.jacobian(PROFILE, q), numeric, atol=1e-8)


def test_ik_returns_to_reachable_poses():
    rng = np.random.default_rng(3)
    for q in random_q(40, 3, shrink=0.3):
        goal = kin.forward(PROFILE, q)
        found = kin.ik(PROFILE, goal, q + rng.uniform(-0.2, 0.2, 7))
        assert np.linalg.norm(kin.pose_error(kin.forward(PROFILE, found), goal)) < 1e-6
        assert np.all(found >= PROFILE.lower) and np.all(found <= PROFILE.upper)


def test_ik_says_how_far_a_pose_is_missed():
    goal = kin.forward(PROFILE, PROFILE.home_q).copy()
    goal[0, 3] = 2.0
    with pytest.raises(kin.IkError, match="within reach of fr3"):
        kin.ik(PROFILE, goal, PROFILE.home_q)


def test_nullspace_prefers_the_posture():
    goal = kin.forward(PROFILE, PROFILE.home_q)
    start = PROFILE.home_q + np.array([0.3, 0.0, -0.3, 0.0, 0.0, 0.0, 0.0])
    near, _ = kin.solve(PROFILE, goal, start, posture=PROFILE.home_q, tolerance=0.0, iterations=400)
    far, _ = kin.solve(PROFILE, goal, start)
    assert np.abs(near - PROFILE.home_q).max() < 0.02 < np.abs(far - PROFILE.home_q).max()


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-3, 1.0, 3.0, np.pi - 1e-8, np.pi])
def test_rotation_vector_and_matrix_are_inverse(angle):
    axis = np.array([0.48, -0.6, 0.64])
    matrix = kin.rotation_matrix(angle * axis)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(kin.rotation_matrix(kin.rotation_vector(matrix)), matrix, atol=1e-7)
    assert np.linalg.norm(kin.rotation_vector(matrix)) == pytest.approx(angle, abs=1e-7)
