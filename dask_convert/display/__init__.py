"""What people look at: progress, dashboard, summary, report."""
