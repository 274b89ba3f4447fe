"""Qualities of service that the nodes share."""

from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

#: The newest message is kept for those who come later.
LATCHED = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)
#: Only the newest counts, and it must arrive.
COMMAND = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.VOLATILE)
