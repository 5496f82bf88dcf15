"""An owner's open jobs are counted, and the next job found, in the index alone."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.drop_index("ix_jobs_status_seq")
        batch_op.create_index("ix_jobs_status_owner_seq", ["status", "owner", "seq"], unique=False)


def downgrade() -> None:
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.drop_index("ix_jobs_status_owner_seq")
        batch_op.create_index("ix_jobs_status_seq", ["status", "seq"], unique=False)
